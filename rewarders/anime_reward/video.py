"""From clips to what encoders take: frames picked, resized and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

FRAMES = 24  # at most so many of a clip are looked at, as the published AnimeReward does


def picked(count: int, most: int = FRAMES) -> list[int]:
    """Which of `count` frames are looked at: all, or `most` of them, spread evenly from the first on."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def sample(clip: np.ndarray, most: int = FRAMES) -> np.ndarray:
    """At most `most` frames of a clip uint8 ``[F, H, W, 3]``."""
    return clip[picked(len(clip), most)]


@dataclass(frozen=True)
class Pixels:
    """Makes a model's input of frames, by the numbers of the model's own image processor.

    Frames are squeezed to a square and not cropped, as the published AnimeReward does: what happens at the edge counts.
    """

    size: int  # pixels
    mean: Sequence[float]  # per channel, of values in [0, 1]
    std: Sequence[float]
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 ``[n, H, W, 3]`` -> float32 ``[n, 3, size, size]``, normalised."""
        square = np.stack([self._resized(frame) for frame in frames]).astype(np.float32) / 255
        normal = (square - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((self.size, self.size), self.resample))
