"""What heads share: embeddings of a varying number of frames in rows of one length, and their scale.

A row is ``[state of slot 1 .. N | embedding of slot 1 .. N | what is no frame]``, so that rows can be stacked, kept and
shuffled by whoever trains.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SEEN, EMPTY, LOST = 1.0, 0.0, -1.0  # a slot has a frame | the clip has fewer frames | what was looked for is not there


def pack(
    frames: torch.Tensor, slots: int, extra: torch.Tensor | None = None, lost: torch.Tensor | None = None
) -> torch.Tensor:
    """One row of `frames` ``[F <= slots, D]``, and of `extra` ``[E]``; `lost` ``[F]`` says which frames to mark so."""
    count, width = frames.shape
    state, cells = frames.new_full((slots,), EMPTY), frames.new_zeros(slots, width)
    state[:count] = SEEN
    cells[:count] = frames
    if lost is not None:
        state[:count][lost] = LOST
    return torch.cat([state, cells.flatten()] + ([] if extra is None else [extra]))


class FrameHead(nn.Module):
    """Takes rows of `slots` frames of `width` apart."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.width, self.slots = width, slots

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States ``[n, slots]``, frames ``[n, slots, width]`` and the rest ``[n, E]`` of rows ``[n, D]``."""
        state, frames, extra = rows.tensor_split([self.slots, self.slots * (1 + self.width)], 1)
        return state, frames.unflatten(1, (self.slots, self.width)), extra


class Scale(nn.Module):
    """Brings every feature to mean 0 and variance 1 over the training clips' frames; when scoring, to what those were.

    Encoders differ a hundredfold in scale, and what changes between frames is small against what all frames share.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)

    def forward(self, frames: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """`frames` ``[n, slots, width]``, of which those `seen` ``[n, slots]`` count; the others become 0."""
        scaled = torch.zeros_like(frames)
        scaled[seen] = self.norm(frames[seen])
        return scaled


def mean_of(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The mean of `values` ``[n, slots, ...]`` over the slots `counted` ``[n, slots]``; 0 where none is."""
    weight = counted.to(values).reshape(*counted.shape, *[1] * (values.ndim - 2))
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


def opinion_loss(predicted: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of scores in 0..100: least at the mean of the opinions, and steep where a sigmoid saturates."""
    return functional.binary_cross_entropy(predicted / 100, scores / 100)
