"""Plain signals of the pixels, on clips whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from rewarders.training.pixel_baselines import (
    SIGNALS,
    histogram_distance,
    mean_flow,
    measure_signals,
    with_positive_srcc,
)


def moving(step: int, frames: int = 5) -> np.ndarray:
    """A smooth random texture that slides right by `step` pixels a frame."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, 40)).repeat(8, 0).repeat(8, 1).astype(float)
    for axis in (0, 1):
        coarse = np.mean([np.roll(coarse, k, axis) for k in range(-4, 5)], 0)
    views = [coarse[:, 64 - t * step : 64 - t * step + 128] for t in range(frames)]
    return np.stack(views).astype(np.uint8)[..., None].repeat(3, -1)


def test_flow_is_in_pixels() -> None:
    assert mean_flow(moving(0), moving(0)[0]) < 0.05
    assert mean_flow(moving(2), moving(2)[0]) == pytest.approx(2, rel=0.15)
    assert mean_flow(moving(4), moving(4)[0]) == pytest.approx(4, rel=0.15)


def test_levels_by_hand() -> None:
    clip = np.full((4, 16, 16, 3), 100, np.uint8)
    clip[1], clip[2], clip[3] = 110, 100, 130
    found = measure_signals(clip, clip[0])
    assert list(found) == list(SIGNALS)
    assert found["frame difference"] == pytest.approx((10 + 10 + 30) / 3)
    assert found["second difference"] == pytest.approx((20 + 40) / 2)
    assert found["first-frame distance"] == 30
    assert found["edges"] == 0
    assert set(measure_signals(clip[:1], clip[0]).values()) == {0.0}


def test_histograms_are_equal_or_disjoint() -> None:
    dark, light = np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)
    assert histogram_distance(dark, dark[0]) == pytest.approx(0, abs=1e-6)
    assert histogram_distance(dark, light[0]) == pytest.approx(1)
    assert histogram_distance(np.concatenate([dark, light]), dark[0]) == pytest.approx(0.5)


def test_a_signal_gets_the_better_sign() -> None:
    opinions = np.array([0.0, 50.0, 100.0])
    assert with_positive_srcc([3, 2, 1], opinions).tolist() == [-3, -2, -1]
    assert with_positive_srcc([1, 2, 3], opinions).tolist() == [1, 2, 3]
