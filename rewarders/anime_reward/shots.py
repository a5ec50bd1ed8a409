"""Key frames: the middle frame of each shot. A jump of the colour histogram starts a new shot."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

BINS = 8  # per colour channel
CUT = 0.5  # a new shot starts if this share of the pixels changes colour


def key_frames(clip: np.ndarray, limit: int) -> list[int]:
    """Returns the indices of a clip's key frames, uint8 ``[F, H, W, 3]``: the middle frames of its `limit` longest
    shots."""
    starts = [0, *cuts(clip), len(clip)]
    shots = sorted(pairwise(starts), key=lambda shot: shot[0] - shot[1])[:limit]
    return sorted((begin + end - 1) // 2 for begin, end in shots)


def cuts(clip: np.ndarray) -> list[int]:
    """Returns the first frame of every shot but the first."""
    histograms = np.stack([_histogram(frame) for frame in clip])
    change = np.abs(np.diff(histograms, axis=0)).sum(1) / 2
    return [int(i) + 1 for i in np.flatnonzero(change > CUT)]


def _histogram(frame: np.ndarray) -> np.ndarray:
    """Returns the share of a frame's pixels in each colour bin, ``[BINS ** 3]``."""
    red, green, blue = (frame.reshape(-1, 3).T.astype(np.int64) * BINS) >> 8
    return np.bincount((red * BINS + green) * BINS + blue, minlength=BINS**3) / red.size
