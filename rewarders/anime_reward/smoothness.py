"""Visual smoothness (Eq. 5): S_smooth = Reg(E_v(I_1, ..., I_N))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from common.messages import Prompt
from rewarders.anime_reward.encoders import Vision
from rewarders.anime_reward.heads import SEEN, FrameHead, Scale, mean_of, pack
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.video import FRAMES, sample

HIDDEN = 64


class SmoothnessHead(FrameHead):
    """Reg: how far the frames' embeddings z_t are from the ones before, and from the middle of their neighbours.

    What moves steadily has small second differences; flicker and warping have large ones. What is shown is none of its
    business, and would be what it learns by heart.
    """

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.scale = Scale(width)
        self.narrow = nn.Linear(width, HIDDEN)
        self.regress = nn.Sequential(nn.Linear(2 * HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, D]`` -> scores ``[n]``, 0..100."""
        state, frames, _ = self.unpack(rows)
        seen = state == SEEN
        z = self.narrow(self.scale(frames, seen))
        step = (z[:, 1:] - z[:, :-1]).abs()
        bend = (z[:, 2:] - 2 * z[:, 1:-1] + z[:, :-2]).abs()
        parts = [mean_of(step, seen[:, 1:]), mean_of(bend, seen[:, 2:])]
        return 100 * self.regress(torch.cat(parts, 1))[:, 0].sigmoid()


class VideoSmoothness(EncoderReward):
    """Frames to a value: does anything flicker, tear or shake?"""

    dimension = "smoothness"
    ROLES = ("vision",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES}

    def build(self) -> None:
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = SmoothnessHead(self.vision.width, self.options["frames"])

    def look(self, clip: np.ndarray, prompt: Prompt) -> torch.Tensor:
        return pack(self.vision(sample(clip, self.options["frames"])), self.options["frames"])
