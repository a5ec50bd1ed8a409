"""Preprocessing of clips for encoders: frame sampling, resizing, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

FRAMES = 81  # maximum number of frames used of a clip: all of CogVideoX's 49 and of CogVideoX 1.5's 81
SAMPLING = "first to last, odd steps"  # recorded with a head; change it with `frame_indices`


def frame_indices(count: int, limit: int = FRAMES) -> list[int]:
    """Returns which of `count` frames to use: all, or `limit` of them, evenly spread from the first to the last.

    If frames are left out, the k-th frame used has the parity of k (but for the last, and never equal to another):
    steps are odd, so what alternates from frame to frame shows. With even steps it would look steady.
    """
    if count <= limit:
        return list(range(count))
    if limit == 1:
        return [0]
    even = [k * (count - 1) // (limit - 1) for k in range(limit)]
    return [place - (place - k) % 2 for k, place in enumerate(even[:-1])] + [count - 1]


def sample_frames(clip: np.ndarray, limit: int = FRAMES) -> np.ndarray:
    """Returns at most `limit` frames of a clip uint8 ``[F, H, W, 3]``; see `frame_indices`."""
    return clip[frame_indices(len(clip), limit)]


@dataclass(frozen=True)
class Pixels:
    """Converts frames to a model's input, with the size and statistics of the model's image processor.

    Frames are resized to a square and not cropped, as in the published AnimeReward: defects at the edge count.
    """

    size: int  # pixels
    mean: Sequence[float]  # per channel, of values in [0, 1]
    std: Sequence[float]
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        """Maps uint8 ``[n, H, W, 3]`` to normalised float32 ``[n, 3, size, size]``."""
        square = np.stack([self._resized(frame) for frame in frames]).astype(np.float32) / 255
        normal = (square - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((self.size, self.size), self.resample))
