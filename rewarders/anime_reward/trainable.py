"""What `douga reward train` needs of a reward: frozen encoders, and a small head over them that learns.

```
clips, prompts ── features (frozen encoders, once per clip, kept) ──> [n, D] ── head (trained) ──> score [n], 0..100
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import nn

from common.messages import Prompt
from rewarders.interface import Reward


@runtime_checkable
class TrainableReward(Reward, Protocol):
    """A `Reward` whose `score` is `head(features(clips, prompts))`, rounded."""

    @property
    def head(self) -> nn.Module:
        """Maps features float32 ``[n, D]`` to scores float32 ``[n]`` in 0..100. The only part that is trained."""
        ...

    def features(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> torch.Tensor:
        """What the frozen encoders see in the clips: float32 ``[n, D]`` on the head's device, without gradient.

        A row depends on its clip and prompt alone, so it may be kept and used again. `clips` and `ValueError` as in
        `Reward.score`.
        """
        ...

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The training loss, a scalar: `features` ``[n, D]`` against people's mean `scores` ``[n]`` in 0..100."""
        ...

    @classmethod
    def create(cls, models: Mapping[str, str], device: str = "cpu", seed: int = 0) -> Self:
        """A fresh head over pretrained models: role -> folder or hub id; the class says which roles it needs.

        `seed` draws the head. `ConfigError` for a role that is missing or unknown, or a model that cannot be loaded.
        """
        ...
