"""Text-video consistency (Eq. 8): S_tvc = Reg(E_v(V), E_t(T)), between the video and its caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.messages import Prompt
from rewarders.anime_reward.encoders import Text, Vision
from rewarders.anime_reward.heads import SEEN, FrameHead, Scale, mean_of, pack
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.video import FRAMES, Frames, sample_frames

HIDDEN = 64


class TextHead(FrameHead):
    """Reg: over the frames' mean and mean change, the caption, and their product in a learned space."""

    def __init__(self, width: int, slots: int, words: int) -> None:
        super().__init__(width, slots)
        self.scale = Scale(width)
        self.words = words
        self.show = nn.Linear(2 * width, HIDDEN)
        self.tell = nn.Linear(words, HIDDEN)
        self.regress = nn.Sequential(nn.Linear(3 * HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100."""
        state, frames, caption = self.unpack(rows)
        seen = state == SEEN
        scaled = self.scale(frames, seen)
        change = mean_of((scaled[:, 1:] - scaled[:, :-1]).abs(), seen[:, 1:])
        shown = self.show(torch.cat([mean_of(scaled, seen), change], 1))
        told = self.tell(functional.layer_norm(caption, (self.words,)))
        return 100 * self.regress(torch.cat([shown, told, shown * told], 1))[:, 0].sigmoid()


class VideoTextConsistency(EncoderReward):
    """Whether the video shows what the caption says."""

    dimension = "text"
    ROLES = TRAINED = ("vision", "text")
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES}

    def build(self) -> None:
        self.vision = Vision(self.folders["vision"], self.device)
        self.text = Text(self.folders["text"], self.device)
        self.head = TextHead(self.vision.width, self.options["frames"], self.text.width)

    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        frames = self.vision(sample_frames(clip, self.options["frames"]))
        return pack(frames, self.options["frames"], self.text(prompt.text))
