"""Preprocessing of clips for encoders: frame sampling, resizing, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from common.messages import Prompt
from rewarders.first_frame import reference_frame
from rewarders.gradient.pixels import from_bytes, mode_of, resized, to_bytes

FRAMES = 81  # maximum number of frames used of a clip: all of CogVideoX's 49 and of CogVideoX 1.5's 81
# Frames of a clip: uint8 [n, H, W, 3], or with a gradient float32 [n, 3, H, W] in 0..1.
Frames: TypeAlias = np.ndarray | torch.Tensor
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


def sample_frames(clip: Frames, limit: int = FRAMES) -> Any:
    """Returns at most `limit` frames of a clip, of the same type; see `frame_indices`."""
    return clip[frame_indices(len(clip), limit)]


def with_reference(clip: Frames, prompt: Prompt, limit: int = FRAMES) -> Frames:
    """Returns `reference_frame`, without a gradient, and after it the sampled frames."""
    if isinstance(clip, np.ndarray):
        return np.concatenate([reference_frame(clip, prompt)[None], sample_frames(clip, limit)])
    first = from_bytes(reference_frame(to_bytes(clip[:1]), prompt))
    return torch.cat([first[None].to(clip.device), sample_frames(clip, limit)])


@dataclass(frozen=True)
class Pixels:
    """Converts frames to a model's input, with the size and statistics of the model's image processor.

    Frames are resized to a square and not cropped, as in the published AnimeReward: defects at the edge count.
    """

    size: int  # pixels
    mean: Sequence[float]  # per channel, of values in [0, 1]
    std: Sequence[float]
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, frames: Frames) -> torch.Tensor:
        """Maps frames to normalised float32 ``[n, 3, size, size]``."""
        if isinstance(frames, torch.Tensor):
            mean, std = (torch.tensor(one).to(frames).view(-1, 1, 1) for one in (self.mean, self.std))
            return (resized(frames, (self.size, self.size), mode_of(self.resample)) - mean) / std
        square = np.stack([self._resized(frame) for frame in frames]).astype(np.float32) / 255
        normal = (square - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((self.size, self.size), self.resample))
