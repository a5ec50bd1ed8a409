"""How a redrawn clip differs from the clean one it was drawn after, and how bad that makes it: what of its figure is
lost, how much the figure's brightness wavers, and how far the figure travels.

The oracle answers something alike, but what judges a run must not have trained its rewards: nothing here asks it. It
also knows less, only a shot's sprites; here the clean clip is at hand, and a smear is what differs from it.

Clips are uint8 ``[K, F, H, W, 3]``; `figures` says which pixels of the clean ones are the figure's, bool
``[K, F, H, W]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from common.toon.world import ACTIONS, Shot, figure_mask

SMEARED = ("appeal", "image", "character")  # dimensions in which a clip is rated by what is lost
CODEC_ERROR = 0.01  # squared error per pixel of the figure (colours in 0..1) that VAE and H.264 make by themselves
LOST_SCALE = 0.02  # error beyond that at which 1/e of the figure is left
WAVER_SCALE = 0.05  # relative spread of its brightness at which 1/e of a figure's smoothness is left
REACH = 8  # pixels around its place within which a figure is looked for
FIT_SCALE = 0.004  # masked squared error by which a place must be worse to count 1/e of another


def badness(clips: np.ndarray, clean: np.ndarray, shots: Sequence[Shot]) -> dict[str, np.ndarray]:
    """By dimension but text, 0 .. 1: of every frame after the first ``[K, F - 1]``, or of the whole clip ``[K, 1]``.

    `clean` shows the `shots` without defects.
    """
    figures = np.stack([figure_mask(clip, shot.scene) for clip, shot in zip(clean, shots, strict=True)])
    paths = [ACTIONS[shot.action].path() for shot in shots]
    smeared = lost(clips, clean, figures)[:, 1:]
    steady = np.exp(-wavering(clips, clean, figures) / WAVER_SCALE)
    moved = [travelled(*one) for one in zip(clips, clean, figures, paths, strict=True)]
    bad = {name: smeared for name in SMEARED}
    return bad | {"smoothness": 1 - (1 - smeared) * steady[:, None], "motion": 1 - np.array(moved)[:, None]}


def lost(clips: np.ndarray, clean: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """Share of the figure that is lost in every frame, ``[K, F]``: 1 - exp(-(error - CODEC_ERROR) / LOST_SCALE).

    The error is summed over the whole frame, ghosts beside the figure included, and divided by the number of the
    figure's pixels.
    """
    error = np.square((clips.astype(np.float32) - clean) / 255.0).mean(-1).sum((2, 3))
    area = np.maximum(figures.sum((2, 3)), 1)
    return 1 - np.exp(-np.maximum(error / area - CODEC_ERROR, 0) / LOST_SCALE)


def wavering(clips: np.ndarray, clean: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """Relative spread over the frames of the brightness where the figure should be, against its own, ``[K]``, >= 0."""
    drawn, own = ((part * figures[..., None]).sum((2, 3, 4), dtype=np.float64) for part in (clips, clean))
    gain = drawn / np.maximum(own, 1)
    return gain.std(1) / np.maximum(gain.mean(1), 1e-6)


def travelled(clip: np.ndarray, clean: np.ndarray, figure: np.ndarray, path: np.ndarray) -> float:
    """Share of its path that the figure of one clip ``[F, H, W, 3]`` travels, 0 .. 1.

    `path` is the clean figure's displacement, pixels, ``[F, 2]`` as (x, y). What is measured is the displacement's
    projection on it, <track, path> / <path, path>. A figure that is further than `REACH` from its place counts as
    about that far: who stands still keeps two thirds of a run of 32 pixels, a third of a walk of 16, little of a climb.
    Looking further finds more that a smear resembles, and a policy smears often but seldom stands still.
    """
    track = path.astype(float)
    for t in range(1, len(clip)):
        if figure[t].any():
            track[t] += _offset(clip[t], clean[t], figure[t])
    return float(np.clip((track * path).sum() / max((path * path).sum(), 1e-6), 0, 1))


def _offset(frame: np.ndarray, clean: np.ndarray, figure: np.ndarray) -> tuple[float, float]:
    """By how much (x, y) the figure stands away from its place: the mean of the offsets up to `REACH`, each counting
    exp(-error / FIT_SCALE), for a smeared figure fits many about as well."""
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
