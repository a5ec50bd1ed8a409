"""Visual appeal (Eq. 7): S_appeal = Aes(SigLIP(I_0, ..., I_K)), I_i in KeyFrm(V).

The paper does not say what KeyFrm is. Here the key frames are spread over the whole clip, whether or not it has cuts,
and by default they are all of its frames: a model that is optimised online against few fixed frames may spoil the
others for free.
"""

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


class AppealHead(FrameHead):
    """Aes: scores every key frame on its own; the clip's score is their mean."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.scale = Scale(width)
        self.judge = nn.Sequential(
            nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 1), nn.Sigmoid()
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100."""
        state, frames, _ = self.unpack(rows)
        seen = state == SEEN
        return 100 * mean_of(self.judge(self.scale(frames, seen))[:, :, 0], seen)


class KeyFrameAppeal(EncoderReward):
    """Scores how good the key frames look, 0..100."""

    dimension = "appeal"
    ROLES = TRAINED = ("vision",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"key_frames": FRAMES}

    def build(self) -> None:
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = AppealHead(self.vision.width, self.options["key_frames"])

    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        limit = self.options["key_frames"]
        return pack(self.vision(sample_frames(clip, limit)), limit)
