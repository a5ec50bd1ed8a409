"""Building blocks of the heads: packing the embeddings of a variable number of frames into fixed-length rows, and
scaling.

A row is ``[state of slot 1 .. N | embedding of slot 1 .. N | further features]``, so rows can be stacked, cached and
shuffled.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SEEN, EMPTY, LOST = 1.0, 0.0, -1.0  # a frame | the clip has fewer frames | the character is lost


def pack(
    frames: torch.Tensor, slots: int, extra: torch.Tensor | None = None, lost: torch.Tensor | None = None
) -> torch.Tensor:
    """Packs `frames` ``[F <= slots, D]`` and `extra` ``[E]`` into one row; `lost` ``[F]`` says which frames to mark
    `LOST`."""
    count, width = frames.shape
    state, cells = frames.new_full((slots,), EMPTY), frames.new_zeros(slots, width)
    state[:count] = SEEN
    cells[:count] = frames
    if lost is not None:
        state[:count][lost] = LOST
    return torch.cat([state, cells.flatten()] + ([] if extra is None else [extra]))


class FrameHead(nn.Module):
    """Base class of heads over rows with `slots` frames of `width` features."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.width, self.slots = width, slots

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Splits rows ``[n, D]`` into states ``[n, slots]``, frames ``[n, slots, width]`` and the rest ``[n, E]``."""
        state, frames, extra = rows.tensor_split([self.slots, self.slots * (1 + self.width)], 1)
        return state, frames.unflatten(1, (self.slots, self.width)), extra


class Scale(nn.Module):
    """Normalises every feature to mean 0 and variance 1 over the training clips' frames, with running statistics when
    scoring.

    Encoders differ a hundredfold in scale, and differences between frames are small beside what all frames share.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, frames: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Scales those `frames` ``[n, slots, width]`` that are `seen` ``[n, slots]``; the others become 0."""
        scaled = torch.zeros_like(frames)
        scaled[seen] = self.norm(frames[seen])
        return scaled


def mean_of(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `values` ``[n, slots, ...]`` over the slots `counted` ``[n, slots]``; 0 if no slot counts."""
    weight = counted.to(values).reshape(*counted.shape, *[1] * (values.ndim - 2))
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


def opinion_loss(predicted: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of scores in 0..100: minimal at the mean rating, with a large gradient where a sigmoid
    saturates."""
    return functional.binary_cross_entropy(predicted / 100, scores / 100)
