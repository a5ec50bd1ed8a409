"""Whether two pictures are the same one in another size, crop or encoding.

A fingerprint is two small pictures of `GRID` cells: the center at 2:1 and the center at 1:2. A picture cropped at its
center, as every first frame is (`common/images.py`), keeps its whole width or its whole height, so it has one of the
two in common with the original, for aspect ratios from 1:2 to 2:1. Two pictures are the same if either differs by at
most `TOLERANCE`, root mean square over cells and colours.

`TOLERANCE` was set on photographs, paintings and toon frames. JPEG (quality 50), H.264, rescaling and noise (standard
deviation 10) change fingerprints by less than 4, or 6 for pictures of 48 x 64 pixels. Two toon frames that differ only
in the figure's pose are 6.4 apart or more, different photographs 7.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

GRID = (12, 6)  # cells along the longer and the shorter side
TOLERANCE = 5.0  # of 255
LENGTH = 3 * GRID[0] * GRID[1]
ROWS = 256  # compared at once


def fingerprint(image: Image.Image) -> np.ndarray:
    """Returns the fingerprint of an RGB image, uint8 ``[2, LENGTH]``."""
    long, short = GRID
    return np.stack([_center(image, (long, short), 2, 1), _center(image, (short, long), 1, 2)])


def _center(image: Image.Image, cells: tuple[int, int], across: int, down: int) -> np.ndarray:
    """The largest center of the aspect ratio `across`:`down`, as `cells` mean colours."""
    width, height = image.size
    unit = min(width / across, height / down)
    left, top = (width - across * unit) / 2, (height - down * unit) / 2
    box = (left, top, width - left, height - top)
    return np.asarray(image.resize(cells, Image.Resampling.BOX, box), np.uint8).ravel()


def same(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns which of `some` [n, 2, LENGTH] and `others` [m, 2, LENGTH] are the same picture: index pairs
    ``[k, 2]``."""
    found = [np.zeros((0, 2), int)]
    for view in range(2):
        right = others[:, view].astype(np.float32)
        for start in range(0, len(some), ROWS):
            left = some[start : start + ROWS, view].astype(np.float32)
            found.append(np.argwhere(_squares(left, right) <= LENGTH * TOLERANCE**2) + np.array([start, 0]))
    return np.unique(np.concatenate(found), axis=0)


def _squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared distances ``[n, m]``, within 2: sums of `LENGTH` products of bytes fit into float32's 24 bits."""
    return (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T


def groups(pictures: np.ndarray) -> np.ndarray:
    """Returns int ``[n]``: `pictures` that are the same, directly or through others, have equal numbers."""
    distinct, place = np.unique(pictures, axis=0, return_inverse=True)
    rows, columns = same(distinct, distinct).T
    shape = (len(distinct), len(distinct))
    return connected_components(csr_array((np.ones(len(rows)), (rows, columns)), shape), False)[1][place]
