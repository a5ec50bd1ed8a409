"""Visual motion (Eq. 6): S_motion = Cos(M_CLIP(V), M_CLIP(T_m)), as in ActionCLIP.

```
N frames ── CLIP's image tower ──> [N, D] ── adapter (trained): temporal transformer, residual, mean ──> video [D]
                                                                                                         │ cosine
PROMPTS ── CLIP's text tower ──> [2, D] ── six levels of amplitude on the arc between them ────────> [6, D]
    training: cross-entropy over the six levels             scoring: the expected level, sum_i p_i i / 5
```

Deviations. The paper has six levels of amplitude, but T_m for the two extreme ones only:

1. The other four levels have no sentence. Their embeddings divide the arc between the two prompts' in equal angles.
2. The clips are not labelled with levels. A mean rating 1..5 is the level 5 (r - 1) / 4; between two levels the target
   probability is split linearly, so that the target's expected level is the rating.
3. The score is the expected level under p = softmax(temperature cos), as trained. The published code takes the softmax
   over the two prompts alone; a model that is trained on six levels leaves their difference free for all clips but the
   extreme ones, and at CLIP's temperature of 100 a difference of 0.03 is already a score of 95.
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
from rewarders.anime_reward.encoders import ImageText
from rewarders.anime_reward.heads import SEEN, FrameHead, mean_of, pack
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.video import FRAMES, Frames, sample_frames

PROMPTS = (  # T_m, word for word: the most motion, none
    "The protagonist has a large range of movement, such as running, jumping, dancing, or waving arms.",
    "The protagonist remains stationary in the video with no apparent movement.",
)
LEVELS = 6  # of amplitude, from score 0 to score 100 in equal steps


def levels_between(large: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
    """Returns the levels' embeddings ``[6, D]``, from `still` to `large` ``[D]``; all have length 1.

    They are on one great circle, in steps of equal angle. The two given must differ, and have length 1.
    """
    angle = torch.arccos(torch.dot(large, still).clamp(-1, 1))
    share = torch.linspace(0, 1, LEVELS, device=large.device)[:, None]
    return (((1 - share) * angle).sin() * still + (share * angle).sin() * large) / angle.sin()


def level_targets(scores: torch.Tensor) -> torch.Tensor:
    """Maps scores ``[n]``, 0..100, to target probabilities of the levels ``[n, 6]``, with the score as their mean."""
    position = scores / 100 * (LEVELS - 1)
    levels = torch.arange(LEVELS, device=scores.device)
    return (1 - (position[:, None] - levels).abs()).clamp(min=0)


class MotionHead(FrameHead):
    """ActionCLIP's adapter over frames.

    `levels` ``[6, D]`` are the levels' embeddings, of length 1; `temperature` is CLIP's logit scale (100).
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
        """Maps rows ``[n, D]`` to scores ``[n]``, 0..100: the expected level."""
        return self.logits(rows).softmax(1) @ torch.linspace(0, 100, LEVELS, device=rows.device)


class PromptedMotion(EncoderReward):
    """How much moves. `clip` is a CLIP or SigLIP model with both towers."""

    dimension = "motion"
    ROLES = TRAINED = ("clip",)
    METHOD: ClassVar[Mapping[str, str]] = {**EncoderReward.METHOD, "score": "expected level between two prompts"}
    OPTIONS: ClassVar[Mapping[str, Any]] = {"frames": FRAMES, "layers": 2}

    def build(self) -> None:
        self.clip = ImageText(self.folders["clip"], self.device)
        self.head = MotionHead(self._levels(), self.clip.temperature, self.options["frames"], self.options["layers"])

    def _levels(self) -> torch.Tensor:
        large, still = functional.normalize(torch.stack([self.clip.text(prompt) for prompt in PROMPTS]), dim=1)
        if torch.allclose(large, still):
            raise ConfigError(f"clip model {self.clip.folder}: gives both motion prompts the same embedding")
        return levels_between(large, still)

    def refresh(self) -> None:
        """Computes the levels' embeddings again."""
        self.head.levels = self._levels()

    def clip_features(self, clip: Frames, prompt: Prompt, found: np.ndarray | None) -> torch.Tensor:
        return pack(self.clip.images(sample_frames(clip, self.options["frames"])), self.options["frames"])

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the six levels; see `level_targets`."""
        return functional.cross_entropy(self.head.logits(features), level_targets(scores))  # type: ignore[operator]
