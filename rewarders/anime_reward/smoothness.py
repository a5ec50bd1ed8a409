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
from rewarders.anime_reward.video import FRAMES, Frames, sample_frames

HIDDEN = 64


class SmoothnessHead(FrameHead):
    """Reg: the size of the first and second differences in time of the frames' embeddings z_t.

    Steady motion has small second differences; flicker and warping have large ones. The head does not see the content,
    which it would memorise.
    """

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.scale = Scale(width)
        self.narrow = nn.Linear(width, HIDDEN)
        self.regress = nn.Sequential(nn.Linear(2 * HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100."""
        state, frames, _ = self.unpack(rows)
        seen = state == SEEN
        z = self.narrow(self.scale(frames, seen))
        step = (z[:, 1:] - z[:, :-1]).abs()
        second_difference = (z[:, 2:] - 2 * z[:, 1:-1] + z[:, :-2]).abs()
        parts = [mean_of(step, seen[:, 1:]), mean_of(second_difference, seen[:, 2:])]
        return 100 * self.regress(torch.cat(parts, 1))[:, 0].sigmoid()


class VideoSmoothness(EncoderReward):
    """Whether anything flickers, tears or shakes."""

    dimension = "smoothness"
    ROLES = TRAINED = ("vision",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES}

    def build(self) -> None:
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = SmoothnessHead(self.vision.width, self.options["frames"])

    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        return pack(self.vision(sample_frames(clip, self.options["frames"])), self.options["frames"])
