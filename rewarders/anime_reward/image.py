"""Image-video consistency: S_image = Reg(E_v(V), E_v(I_p)), between the video and the image that it animates."""

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
from rewarders.toon_heads.heads import first_frame

HIDDEN = 64


class ImageHead(FrameHead):
    """Reg: exp(-d), d the mean squared difference of a frame and the image in a learned space; slot 0 is the image.

    A clip in which nothing changes scores 100 by construction, whatever was learned.
    """

    def __init__(self, width: int, slots: int) -> None:
        super().__init__(width, slots)
        self.scale = Scale(width)
        self.project = nn.Linear(width, HIDDEN, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, D]`` -> scores ``[n]``, 0..100."""
        state, frames, _ = self.unpack(rows)
        seen = state == SEEN
        z = self.project(self.scale(frames, seen))
        away = (z[:, 1:] - z[:, :1]).square().mean(2)
        return 100 * mean_of((-away).exp(), seen[:, 1:])


class VideoImageConsistency(EncoderReward):
    """Video and first frame to a value: is it still the picture that was given?"""

    dimension = "image"
    ROLES = ("vision",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES}

    def build(self) -> None:
        self.vision = Vision(self.folders["vision"], self.device)
        self.head = ImageHead(self.vision.width, 1 + self.options["frames"])

    def look(self, clip: np.ndarray, prompt: Prompt) -> torch.Tensor:
        frames = np.concatenate([first_frame(clip, prompt)[None], sample(clip, self.options["frames"])])
        return pack(self.vision(frames), 1 + self.options["frames"])
