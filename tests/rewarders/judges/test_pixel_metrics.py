"""Metrics of consecutive frames, against values worked out by hand and an SSIM written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.signal import convolve2d

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.registry import open_judge

ASKED = Prompt(0, "p", "walks")
KINDS = ("frame_ssim", "frame_mse", "temporal_flicker")


def levels(*values: int) -> Clip:
    """A clip of uniform grey frames."""
    return Clip(np.stack([np.full((16, 20, 3), value, np.uint8) for value in values]), 8.0)


def score(kind: str, clip: Clip, **keys: float) -> float:
    (found,) = open_judge("a", JudgeConfig(kind=kind, **keys)).judge([clip], [ASKED])
    assert isinstance(found, dict)
    assert list(found) == [kind]
    return found[kind]


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, over every window of 11 x 11 that is inside of the image."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x, y = one.astype(float), other.astype(float)

    def mean(values: np.ndarray) -> np.ndarray:
        return convolve2d(values, window, mode="valid")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def test_uniform_frames_by_hand() -> None:
    clip = levels(100, 110, 100, 130)  # steps of 10, 10 and 30
    assert score("frame_mse", clip) == pytest.approx(100 - (100 + 100 + 900) / 3)
    assert score("temporal_flicker", clip) == pytest.approx(100 * (255 - 50 / 3) / 255)
    luminance = [(2 * a * b + 6.5025) / (a * a + b * b + 6.5025) for a, b in ((100, 110), (110, 100), (100, 130))]
    assert score("frame_ssim", clip) == pytest.approx(100 * np.mean(luminance))


def test_the_mse_of_colours_is_a_mean_over_channels() -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[1, ..., 0] = 9
    assert score("frame_mse", Clip(frames, 8.0)) == pytest.approx(100 - 81 / 3)
    assert score("temporal_flicker", Clip(frames, 8.0)) == pytest.approx(100 * (255 - 3) / 255)


def test_ssim_of_textures_is_wangs() -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (24, 30), np.uint8)
    noisy = np.clip(texture.astype(int) + rng.integers(-40, 40, texture.shape), 0, 255).astype(np.uint8)
    frames = np.stack([texture, noisy, 255 - texture])[..., None].repeat(3, -1)
    wanted = (ssim(texture, noisy) + ssim(noisy, 255 - texture)) / 2
    assert -0.2 < wanted < 0.5
    assert score("frame_ssim", Clip(frames, 8.0)) == pytest.approx(100 * wanted, abs=1e-4)


def test_the_range_may_be_another() -> None:
    assert score("frame_mse", levels(100, 120), low=-800, high=0) == pytest.approx(50)
    assert score("temporal_flicker", levels(0, 51), low=0.6, high=1) == pytest.approx(50)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_clip_has_the_highest_value(kind: str) -> None:
    frame = np.random.default_rng(1).integers(0, 255, (1, 16, 16, 3), np.uint8)
    assert score(kind, Clip(frame.repeat(3, 0), 8.0)) == pytest.approx(100)


@pytest.mark.parametrize("kind", [*KINDS, "warp_error", "flow_magnitude"])
def test_one_frame_has_no_score(kind: str) -> None:
    judge = open_judge("a", JudgeConfig(kind=kind))
    assert judge.judge([levels(9)], [ASKED]) == ["a clip of 1 frame; at least 2 are needed"]


@pytest.mark.parametrize(("kind", "smallest"), [("frame_ssim", 11), ("warp_error", 12), ("flow_magnitude", 12)])
def test_small_frames_have_no_score(kind: str, smallest: int) -> None:
    judge = open_judge("a", JudgeConfig(kind=kind))
    sizes: Callable[[int], Clip] = lambda side: Clip(np.zeros((2, 30, side, 3), np.uint8), 8.0)  # noqa: E731
    refused, accepted = judge.judge([sizes(smallest - 1), sizes(smallest)], [ASKED] * 2)
    assert refused == f"a clip of 30 x {smallest - 1} pixels; each side must have at least {smallest}"
    assert isinstance(accepted, dict)


@pytest.mark.parametrize("kind", [*KINDS, "warp_error", "flow_magnitude"])
def test_a_model_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.judges\.a: path = 'x': {kind} has no model; leave it empty"):
        open_judge("a", JudgeConfig(kind=kind, path="x"))


def test_digests_tell_kinds_apart() -> None:
    kinds = (*KINDS, "warp_error", "flow_magnitude")
    assert len({open_judge("a", JudgeConfig(kind=kind)).digest for kind in kinds}) == len(kinds)
