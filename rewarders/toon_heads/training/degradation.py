"""Measures how far a regenerated clip deviates from its clean source: figure loss, flicker and missing displacement.

The oracle measures something similar, but it judges runs and must not have trained their rewards, so nothing here uses
it. It also knows less: the sprites of a shot, while here the clean clip is available.

Clips are uint8 ``[K, F, H, W, 3]``; `figures` masks the figure's pixels in the clean ones, bool ``[K, F, H, W]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from common.toon.world import ACTIONS, Shot, figure_mask

FIGURE_DIMENSIONS = ("appeal", "image", "character")  # dimensions rated by the figure loss
CODEC_ERROR = 0.01  # squared error per figure pixel (colours in 0..1) that VAE and H.264 cause by themselves
LOST_SCALE = 0.02  # error beyond that which leaves 1/e of the figure
FLICKER_SCALE = 0.05  # relative spread of the brightness that leaves 1/e of the smoothness
REACH = 8  # search radius around the figure's place, pixels
FIT_SCALE = 0.004  # increase of the masked squared error that reduces an offset's weight to 1/e


def badness(clips: np.ndarray, clean: np.ndarray, shots: Sequence[Shot]) -> dict[str, np.ndarray]:
    """Returns the badness 0..1 by dimension (all but text), per frame after the first ``[K, F - 1]`` or per clip ``[K,
    1]``.

    `clean` shows the `shots` without defects.
    """
    figures = np.stack([figure_mask(clip, shot.scene) for clip, shot in zip(clean, shots, strict=True)])
    paths = [ACTIONS[shot.action].path() for shot in shots]
    loss = figure_loss(clips, clean, figures)[:, 1:]
    steady = np.exp(-brightness_flicker(clips, clean, figures) / FLICKER_SCALE)
    moved = [travelled_share(*one) for one in zip(clips, clean, figures, paths, strict=True)]
    bad = {name: loss for name in FIGURE_DIMENSIONS}
    return bad | {"smoothness": 1 - (1 - loss) * steady[:, None], "motion": 1 - np.array(moved)[:, None]}


def figure_loss(clips: np.ndarray, clean: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """Returns the lost share of the figure in every frame, ``[K, F]``: 1 - exp(-(error - CODEC_ERROR) / LOST_SCALE).

    The error is summed over the whole frame, so ghosts beside the figure count, and divided by the figure's pixel
    count.
    """
    error = np.square((clips.astype(np.float32) - clean) / 255.0).mean(-1).sum((2, 3))
    area = np.maximum(figures.sum((2, 3)), 1)
    return 1 - np.exp(-np.maximum(error / area - CODEC_ERROR, 0) / LOST_SCALE)


def brightness_flicker(clips: np.ndarray, clean: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """Returns the relative spread over frames of the figure's brightness, against the clean figure's, ``[K]``, >= 0."""
    drawn, own = ((part * figures[..., None]).sum((2, 3, 4), dtype=np.float64) for part in (clips, clean))
    gain = drawn / np.maximum(own, 1)
    return gain.std(1) / np.maximum(gain.mean(1), 1e-6)


def travelled_share(clip: np.ndarray, clean: np.ndarray, figure: np.ndarray, path: np.ndarray) -> float:
    """Returns the share of its path that the figure of one clip ``[F, H, W, 3]`` travels, 0..1.

    `path` is the clean figure's displacement in pixels, ``[F, 2]`` as (x, y). The share is the displacement's
    projection on it, <track, path> / <path, path>. A figure further than `REACH` from its place counts as about that
    far away: one that does not move keeps two thirds of a 32-pixel run, a third of a 16-pixel walk, and little of a
    climb. A larger search radius finds more spurious matches for distorted figures, and a policy distorts often but
    rarely freezes.
    """
    track = path.astype(float)
    for t in range(1, len(clip)):
        if figure[t].any():
            track[t] += _offset(clip[t], clean[t], figure[t])
    return float(np.clip((track * path).sum() / max((path * path).sum(), 1e-6), 0, 1))


def _offset(frame: np.ndarray, clean: np.ndarray, figure: np.ndarray) -> tuple[float, float]:
    """Returns how far (x, y) the figure is from its place: the mean of all offsets up to `REACH`, weighted by
    exp(-error / FIT_SCALE), because a distorted figure fits many offsets about equally well."""
    box = cv2.boundingRect(figure.astype(np.uint8))
    mask = np.repeat(_cut(figure, box)[..., None].astype(np.float32), 3, 2)
    around = cv2.copyMakeBorder(frame, REACH, REACH, REACH, REACH, cv2.BORDER_REPLICATE).astype(np.float32) / 255
    searched = _cut(around, (box[0], box[1], box[2] + 2 * REACH, box[3] + 2 * REACH))
    sought = _cut(clean, box).astype(np.float32) / 255
    error = cv2.matchTemplate(searched, sought, cv2.TM_SQDIFF, mask=mask) / mask.sum()
    share = np.exp(-(error - error.min()) / FIT_SCALE)
    share /= share.sum()
    away = np.arange(-REACH, REACH + 1)
    return float(share.sum(0) @ away), float(share.sum(1) @ away)


def _cut(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    x, y, width, height = box
    return image[y : y + height, x : x + width]
