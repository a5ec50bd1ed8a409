"""Ratings of redrawn clips: lost, unsteady and moving figures."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.video import decode_clip, encode_mp4
from common.toon.world import ACTIONS, FPS, Shot, figure_mask, render
from rewarders.toon_heads.training.degradation import (
    FIGURE_DIMENSIONS,
    badness,
    brightness_flicker,
    figure_loss,
    travelled_share,
)


def test_lost_by_hand() -> None:
    """A figure of 2 pixels, one of them 0.4 off: 0.16 / 2 - 0.01 = 0.07, and 1 - exp(-0.07 / 0.02) = 0.9698."""
    clean = np.zeros((1, 9, 48, 64, 3), np.uint8)
    clean[:, :, 10, 10:12] = 200
    clips = clean.copy()
    clips[0, 3, 10, 11] = 98
    clips[0, 4, 40, 60] = 102  # a ghost elsewhere counts the same
    assert figure_loss(clips, clean, clean.any(-1))[0] == pytest.approx([0, 0, 0, 0.9698, 0.9698, 0, 0, 0, 0], abs=1e-4)


def test_wavering_by_hand() -> None:
    """Gains 1, 1, 0.5, 0.5: mean 0.75, standard deviation 0.25, a third of it. Twice as dark all through is steady."""
    clean = np.zeros((3, 4, 48, 64, 3), np.uint8)
    clean[:, :, 10, 10:12] = 200
    clips = clean.copy()
    clips[0, 2:] //= 2
    clips[1] //= 2
    clips[2] = 0
    clips[:, :, 40, 60] = 255  # what is beside the figure does not count
    assert brightness_flicker(clips, clean, clean.any(-1) & (clean[..., 0] == 200)) == pytest.approx([1 / 3, 0, 0])


def test_badness_by_hand() -> None:
    """Half as bright in the last 4 of 9 frames: gain 1 and 0.5, mean 7/9, spread 0.2485 / 0.7778 = 0.3194, of which
    exp(-0.3194 / 0.05) = 0.00168 is steady."""
    shots = [Shot("zombie", "snow", "run_right", 24)] * 2
    clean = np.stack([render(shot) for shot in shots])
    clips = clean.copy()
    clips[1, 5:] //= 2
    bad = badness(clips, clean, shots)
    assert sorted(bad) == ["appeal", "character", "image", "motion", "smoothness"]
    assert bad["motion"].shape == (2, 1)
    assert all(value[0] == pytest.approx(0, abs=0.02) for value in bad.values())
    for dimension in FIGURE_DIMENSIONS:
        assert bad[dimension][1] == pytest.approx([0, 0, 0, 0, 1, 1, 1, 1], abs=1e-3)
    assert bad["smoothness"][1] == pytest.approx([0.99832] * 4 + [1.0] * 4, abs=2e-4)


@pytest.mark.parametrize(
    ("action", "kept"), [("jump", 0.07), ("climb", 0.12), ("walk_left", 0.36), ("run_right", 0.65)]
)
def test_a_still_figure_is_found_within_the_search_range(action: str, kept: float) -> None:
    shot = Shot("zombie", "snow", action, 24)
    clean = render(shot)[None]
    frozen = np.repeat(clean[:, :1], len(clean[0]), 1)
    assert badness(frozen, clean, [shot])["motion"] == pytest.approx(1 - kept, abs=0.02)


@pytest.mark.parametrize("action", list(ACTIONS))
def test_a_clean_figure_travels_all_its_path_also_through_the_codec(action: str) -> None:
    shot = Shot("zombie", "snow", action, 24)
    clean, path = render(shot), ACTIONS[action].path()
    figure = figure_mask(clean, shot.scene)
    for clip in (clean, decode_clip(encode_mp4(clean, FPS))):
        assert travelled_share(clip, clean, figure, path) > 0.96


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_figure_that_lags_travels_less(share: float) -> None:
    """A square of 6 x 6 pixels on a path of 1 pixel a frame to the right."""
    clean, clip = np.full((2, 9, 48, 64, 3), 90, np.uint8)
    for t in range(9):
        clean[t, 20:26, 20 + t : 26 + t] = 250
        at = 20 + round(share * t)
        clip[t, 20:26, at : at + 6] = 250
    path = np.stack([np.arange(9.0), np.zeros(9)], 1)
    behind = np.array([round(share * t) for t in range(9)])
    expected = (behind * np.arange(9)).sum() / (np.arange(9) ** 2).sum()
    assert travelled_share(clip, clean, clean[..., 0] == 250, path) == pytest.approx(expected, abs=0.02)


def test_a_figure_outside_the_frame_counts_as_moving() -> None:
    shot = Shot("zombie", "snow", "run_right", 24)
    clean, path = render(shot), ACTIONS["run_right"].path()
    figure = figure_mask(clean, shot.scene)
    figure[6:] = False
    assert travelled_share(clean, clean, figure, path) > 0.96
