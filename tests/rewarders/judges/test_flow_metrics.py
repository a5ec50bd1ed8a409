"""Metrics over optical flow, on clips whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from common.config import JudgeConfig
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.flow_metrics import fastest_mean, look_up, visible_pixels, warped_error
from rewarders.judges.registry import open_judge
from rewarders.optical_flow.dis import optical_flow

ASKED = Prompt(0, "p", "walks")
H, W = 96, 128


def texture(seed: int = 0) -> np.ndarray:
    """Smooth random grey values, float ``[96, 320]``."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 40)).repeat(8, 0).repeat(8, 1).astype(float)
    for axis in (0, 1):
        coarse = np.mean([np.roll(coarse, k, axis) for k in range(-4, 5)], 0)
    return coarse


def colour(frames: list[np.ndarray]) -> np.ndarray:
    return np.stack(frames).astype(np.uint8)[..., None].repeat(3, -1)


def sliding(step: int, frames: int = 4) -> np.ndarray:
    """A texture that slides right by `step` pixels a frame."""
    return colour([texture()[:, 64 - t * step : 64 - t * step + W] for t in range(frames)])


def score(kind: str, frames: np.ndarray, fps: float = 8.0) -> float:
    (found,) = open_judge("a", JudgeConfig(kind=kind)).judge([Clip(frames, fps)], [ASKED])
    assert isinstance(found, dict)
    return found[kind]


def mse(frames: np.ndarray) -> float:
    return float(np.square(np.diff(frames.astype(float), axis=0)).mean())


def test_motion_explains_a_sliding_texture() -> None:
    clip = sliding(3)
    assert mse(clip) > 200
    assert 100 - score("warp_error", clip) < 0.02 * mse(clip)
    assert score("warp_error", sliding(0)) == pytest.approx(100)


def test_a_step_of_brightness_is_an_error() -> None:
    """Uniform frames have no flow, so the error is the square of the step."""
    frames = colour([np.full((24, 32), level) for level in (100, 103, 98)])
    assert score("warp_error", frames) == pytest.approx(100 - (9 + 25) / 2)


def test_the_error_is_that_of_the_visible_pixels() -> None:
    """A square that moves over a texture hides a part of it: the sum is written out, with SciPy's interpolation."""
    behind, square = texture()[:, :W], texture(1)[:32, :32]
    frames = [behind.copy(), behind.copy()]
    for t, frame in enumerate(frames):
        frame[20:52, 30 + 6 * t : 62 + 6 * t] = square
    clip = colour(frames)
    first, second = clip[0, ..., 0], clip[1, ..., 0]
    forward, backward = optical_flow(first, second), optical_flow(second, first)
    y, x = np.mgrid[:H, :W].astype(float)
    to_y, to_x = y + forward[..., 1], x + forward[..., 0]
    at = lambda image: map_coordinates(image.astype(float), [to_y, to_x], order=1, mode="nearest")  # noqa: E731
    back = np.stack([at(backward[..., 0]), at(backward[..., 1])], -1)
    apart, lengths = ((forward + back) ** 2).sum(-1), (forward**2).sum(-1) + (back**2).sum(-1)
    visible = (apart <= 0.01 * lengths + 0.5) & (to_x >= 0) & (to_x <= W - 1) & (to_y >= 0) & (to_y <= H - 1)
    error = (first - at(second)) ** 2
    assert 0.8 < visible.mean() < 1
    assert error[~visible].mean() > 5 * error[visible].mean()
    assert 100 - score("warp_error", clip) == pytest.approx(error[visible].mean(), rel=0.05)


def test_a_cut_counts_with_all_pixels() -> None:
    before, after = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 20, np.uint8)
    away = np.full((12, 12, 2), 50, np.float32)  # everything leaves the frame
    assert not visible_pixels(away, -away).any()
    assert warped_error(before, after, away, -away) == 400
    rng = np.random.default_rng(3)
    cut = np.stack([rng.integers(0, 90, (16, 16, 3)), rng.integers(160, 255, (16, 16, 3))]).astype(np.uint8)
    assert score("warp_error", cut) < -5000  # dark to light


def test_the_mask_by_hand() -> None:
    forward = np.zeros((12, 12, 2), np.float32)
    forward[..., 0] = 2
    visible = visible_pixels(forward, -forward)
    assert visible[:, :10].all()
    assert not visible[:, 10:].any()  # these leave the frame
    backward = -forward
    backward[:, 4] = 0  # what is seen there does not come from two pixels to the left: 4 > 0.01 (4 + 0) + 0.5
    assert np.flatnonzero(~visible_pixels(forward, backward)[5]).tolist() == [2, 10, 11]


def test_looking_up_is_bilinear() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)[..., None]
    flow = np.zeros((3, 4, 2), np.float32)
    flow[1, 1] = (0.5, 1.0)  # x, y: halfway between 9 and 10
    assert look_up(image, flow).reshape(3, 4)[1].tolist() == [4, 9.5, 6, 7]


def test_speed_is_in_percent_of_the_shorter_side_per_second() -> None:
    for step, fps in ((2, 8.0), (4, 8.0), (2, 16.0)):
        wanted = 100 * step * fps / H
        assert score("flow_magnitude", sliding(step), fps) == pytest.approx(wanted, rel=0.15)
    assert score("flow_magnitude", sliding(0)) < 0.5


def test_the_fastest_twentieth() -> None:
    flow = np.zeros((10, 10, 2), np.float32)
    flow.reshape(100, 2)[:, 1] = np.random.default_rng(0).permutation(100) + 1
    assert fastest_mean(flow) == pytest.approx(98)  # of 96 .. 100
    assert fastest_mean(flow[:1, :3]) == pytest.approx(float(flow[0, :3, 1].max()))


def test_a_value_does_not_depend_on_the_batch() -> None:
    for kind in ("warp_error", "flow_magnitude"):
        judge, clips = open_judge("a", JudgeConfig(kind=kind)), [Clip(sliding(step), 8.0) for step in (1, 2, 5)]
        together = judge.judge(clips, [ASKED] * 3)
        assert together == [judge.judge([clip], [ASKED])[0] for clip in clips]
        assert together[0] != together[1]
