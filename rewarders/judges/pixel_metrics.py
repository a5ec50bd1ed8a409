"""Metrics of consecutive frames that compare pixels, without a model.

v_t is frame t of F, pixels 0..255, and the mean of p runs over pixels and channels:

| kind | raw value | range mapped to 0..100 | source |
|---|---|---|---|
| `frame_ssim` | 1/(F-1) sum_t SSIM(v_t, v_t+1), -1..1 | 0..1 | HuViDPO, table 1 (SSIM) |
| `frame_mse` | - 1/(F-1) sum_t mean_p (v_t - v_t+1)^2 | -100..0, so the score is 100 - MSE | HuViDPO, table 1 (MSE) |
| `temporal_flicker` | (255 - 1/(F-1) sum_t mean_p abs(v_t - v_t+1)) / 255 | 0..1 | VBench (Huang et al. 2024) |

SSIM is that of Wang et al. 2004: luminance, Gaussian window of 11 x 11 with standard deviation 1.5, K = (0.01, 0.03).
HuViDPO says neither which frames it compares nor in which colours or units; consecutive frames and 0..255 are the
assumptions here. `temporal_flicker` is VBench's formula of temporal flickering. VBench applies it to static scenes
only: its benchmark filters the clips first.

All three are highest for a frozen clip, so they mean something only beside a measure of motion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from rewarders.judges.adapter import InputSpec
from rewarders.judges.frame_pairs import FramePairMetric
from rewarders.optical_flow.dis import grey

WANG: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


class FrameSsim(FramePairMetric):
    """Structural similarity of consecutive frames."""

    name = "frame_ssim"
    needs = InputSpec(low=0.0, high=1.0)
    smallest = 11  # the window

    def pair(self, before: np.ndarray, after: np.ndarray) -> float:
        """See `FramePairMetric.pair`."""
        similarity: Any = structural_similarity(grey(before), grey(after), data_range=255, **WANG)
        return float(similarity)


class FrameMse(FramePairMetric):
    """Mean squared error of consecutive frames, with a minus: higher is better."""

    name = "frame_mse"
    needs = InputSpec(low=-100.0, high=0.0)

    def pair(self, before: np.ndarray, after: np.ndarray) -> float:
        """See `FramePairMetric.pair`."""
        return -float(np.square(before.astype(np.float64) - after).mean())


class TemporalFlicker(FramePairMetric):
    """Mean absolute error of consecutive frames, as a share of the pixel range that is left: 1 without a change."""

    name = "temporal_flicker"
    needs = InputSpec(low=0.0, high=1.0)

    def pair(self, before: np.ndarray, after: np.ndarray) -> float:
        """See `FramePairMetric.pair`."""
        return (255.0 - float(np.abs(before.astype(np.float64) - after).mean())) / 255.0
