"""Image-video consistency (Eq. 9): S_ivc = Reg(E_v(V), E_v(I_p)), between the video and its first frame."""

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
from rewarders.anime_reward.video import FRAMES, Frames, with_reference

HIDDEN = 64


class ImageHead(FrameHead):
    """Reg: exp(-d), where d is a frame's mean squared distance from the image in a learned space; slot 0 is the image.

    A clip in which nothing changes scores 100 by construction, whatever the weights.
    """

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.scale = Scale(width)
        self.project = nn.Linear(width, HIDDEN, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100."""
        state, frames, _ = self.unpack(rows)
        seen = state == SEEN
        z = self.project(self.scale(frames, seen))
        distance = (z[:, 1:] - z[:, :1]).square().mean(2)
        return 100 * mean_of((-distance).exp(), seen[:, 1:])


class VideoImageConsistency(EncoderReward):
    """Whether the video still shows the given first frame's picture."""

    dimension = "image"
    ROLES = TRAINED = ("vision",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES}

    def build(self) -> None:
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = ImageHead(self.vision.width, 1 + self.options["frames"])

    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        frames = with_reference(clip, prompt, self.options["frames"])
        return pack(self.vision(frames), 1 + self.options["frames"])
