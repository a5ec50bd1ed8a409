"""Key frames: one of each shot, found by the jumps of its colours' histogram."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

BINS = 8  # per colour channel
CUT = 0.5  # share of the pixels whose colour is gone: above it, a new shot begins


def key_frames(clip: np.ndarray, most: int) -> list[int]:
    """Indices of a clip's key frames: of its `most` longest shots, each shot's middle. uint8 ``[F, H, W, 3]``."""
    starts = [0, *cuts(clip), len(clip)]
    shots = sorted(pairwise(starts), key=lambda shot: shot[0] - shot[1])[:most]
    return sorted((begin + end - 1) // 2 for begin, end in shots)


def cuts(clip: np.ndarray) -> list[int]:
    """The frames with which a new shot begins, besides frame 0."""
    seen = np.stack([_histogram(frame) for frame in clip])
    gone = np.abs(np.diff(seen, axis=0)).sum(1) / 2
    return [int(i) + 1 for i in np.flatnonzero(gone > CUT)]


def _histogram(frame: np.ndarray) -> np.ndarray:
    """The share of a frame's pixels per coarse colour, ``[BINS ** 3]``."""
    red, green, blue = (frame.reshape(-1, 3).T.astype(np.int64) * BINS) >> 8
    return np.bincount((red * BINS + green) * BINS + blue, minlength=BINS**3) / red.size
