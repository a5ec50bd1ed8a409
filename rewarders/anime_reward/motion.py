"""Visual motion (Eq. 6): S_motion = Cos(M_CLIP(V), M_CLIP(T_m)), as in ActionCLIP.

```
N frames ── CLIP's image tower ──> [N, D] ── adapter (trained): temporal transformer, residual, mean ──> video [D]
                                                                                                         │ cosine
LEVELS, six sentences ── CLIP's text tower ──────────────────────────────────────────────────────> [6, D]
    training: cross-entropy over all six levels        scoring: softmax over the two ends, most motion against none
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.errors import ConfigError
from common.messages import Prompt
from rewarders.anime_reward.encoders import CaptionTokenizer, load, pixels
from rewarders.anime_reward.heads import SEEN, FrameHead, mean_of, pack
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.video import FRAMES, sample_frames

LEVELS = (  # T_m, from score 0 to score 100 in equal steps
    "The protagonist stays still from the first to the last frame.",
    "The protagonist hardly moves: only the eyes, the mouth or the expression change.",
    "The protagonist moves a little, such as turning the head.",
    "The protagonist moves somewhat, such as gesturing or shifting the body.",
    "The protagonist moves clearly, such as walking or waving the arms.",
    "The protagonist moves a lot, such as running, jumping, dancing or fighting.",
)


class MotionHead(FrameHead):
    """ActionCLIP's adapter over frames.

    `levels` ``[6, D]`` are the sentences' embeddings, of length 1; `temperature` is CLIP's logit scale (100).
    """

    levels: torch.Tensor

    def __init__(self, levels: torch.Tensor, temperature: float, slots: int, layers: int) -> None:
        width = levels.shape[1]
        super().__init__(width, slots)
        self.register_buffer("levels", levels, persistent=False)
        self.temperature = temperature
        self.places = nn.Parameter(0.02 * torch.randn(slots, width))
        block = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.adapter = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the video's cosine similarity with each level, times the temperature, ``[n, 6]``."""
        state, frames, _ = self.unpack(rows)
        seen = state == SEEN
        adapted = self.adapter(frames + self.places, src_key_padding_mask=~seen)
        video = functional.normalize(mean_of(frames + adapted, seen), dim=1)
        return self.temperature * video @ self.levels.T

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100: the probability of the highest level against the lowest."""
        logits = self.logits(rows)
        return 100 * (logits[:, -1] - logits[:, 0]).sigmoid()


class PromptedMotion(EncoderReward):
    """How much moves. `clip` is a CLIP or SigLIP model with both towers."""

    dimension = "motion"
    ROLES = ("clip",)
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES, "layers": 2}

    def build(self) -> None:
        folder = self.folders["clip"]
        self.clip = load("clip", folder).to(self.device)
        if not hasattr(self.clip, "get_text_features"):
            raise ConfigError(
                f"clip model {folder}: {type(self.clip).__name__} has no joint embedding space of text and images"
            )
        self.pixels = pixels("clip", folder, self.clip.config.vision_config)
        tokenize = CaptionTokenizer("clip", folder, self.clip.config.text_config)
        with torch.no_grad():
            embeddings = [self.clip.get_text_features(**tokenize(level, self.device)).pooler_output for level in LEVELS]
        levels = functional.normalize(torch.cat(embeddings), dim=1)
        temperature = float(self.clip.logit_scale.exp())
        self.head = MotionHead(levels, temperature, self.options["frames"], self.options["layers"])

    def clip_features(self, clip: np.ndarray, prompt: Prompt) -> torch.Tensor:
        images = self.pixels(sample_frames(clip, self.options["frames"])).to(self.device)
        return pack(self.clip.get_image_features(pixel_values=images).pooler_output, self.options["frames"])

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the six levels; the target of a score between two levels is split between them."""
        position = scores / 100 * (len(LEVELS) - 1)
        levels = torch.arange(len(LEVELS), device=scores.device)
        target = (1 - (position[:, None] - levels).abs()).clamp(min=0)
        return functional.cross_entropy(self.head.logits(features), target)  # type: ignore[operator]
