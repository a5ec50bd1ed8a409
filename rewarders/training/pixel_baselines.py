"""Simple pixel statistics as baselines for trained heads: what a user has without training.

Each is one number per clip. It is unknown whether high or low is good, so the evaluation picks the sign that correlates
better on the evaluated clips, which favours the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import cv2
import numpy as np

from rewarders.optical_flow.dis import grey, optical_flow
from rewarders.training.ranking_metrics import srcc

BINS = 8  # histogram bins per colour channel

Signal = Callable[[np.ndarray, np.ndarray], float]
"""uint8 clip ``[F, H, W, 3]``, F >= 2, and first frame ``[H, W, 3]`` of the same size -> a number."""


def mean_flow(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean length of the optical flow between frames, pixels."""
    flows = [optical_flow(before, after) for before, after in pairwise([grey(frame) for frame in clip])]
    return float(np.linalg.norm(flows, axis=-1).mean())


def frame_difference(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute difference of adjacent frames."""
    return float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean())


def histogram_distance(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean Bhattacharyya distance of the frames' colour histograms from the first frame's, 0..1."""
    own = _histogram(first)
    return float(np.mean([cv2.compareHist(own, _histogram(frame), cv2.HISTCMP_BHATTACHARYYA) for frame in clip]))


def second_difference(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute second difference in time."""
    return float(np.abs(np.diff(clip.astype(np.float32), 2, axis=0)).mean()) if len(clip) > 2 else 0.0


def edge_difference(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute difference of adjacent pixels, minus the first frame's."""
    wide, own = clip.astype(np.float32), first.astype(np.float32)
    return float(np.abs(np.diff(wide, axis=2)).mean() - np.abs(np.diff(own, axis=1)).mean())


def last_frame_distance(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute difference of the last and the first frame."""
    return float(np.abs(clip[-1].astype(np.float32) - first).mean())


SIGNALS: dict[str, Signal] = {
    "optical flow": mean_flow,
    "frame difference": frame_difference,
    "histogram distance": histogram_distance,
    "second difference": second_difference,
    "edges": edge_difference,
    "first-frame distance": last_frame_distance,
}


def measure_signals(clip: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Returns every signal of one clip; 0 if it has a single frame."""
    return {name: signal(clip, first) if len(clip) > 1 else 0.0 for name, signal in SIGNALS.items()}


def with_positive_srcc(values: Sequence[float] | np.ndarray, opinions: np.ndarray) -> np.ndarray:
    """Returns the values with the sign that makes their rank correlation with `opinions` positive."""
    signed = np.asarray(values, np.float64)
    return -signed if srcc(signed, opinions) < 0 else signed


def _histogram(frame: np.ndarray) -> np.ndarray:
    counts = cv2.calcHist([np.ascontiguousarray(frame)], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return cv2.normalize(counts, counts, 1.0, 0.0, cv2.NORM_L1)
