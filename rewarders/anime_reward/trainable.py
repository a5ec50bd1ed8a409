"""The interface that `douga reward train` needs without `--encoders`: frozen encoders with a small trainable head.

```
clips, prompts ── features (frozen encoders, once per clip, cached) ──> [n, D] ── head (trained) ──> score [n], 0..100
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
        """Maps features float32 ``[n, D]`` to scores float32 ``[n]`` in 0..100. The only trained part."""
        ...

    def features(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> torch.Tensor:
        """Returns the frozen encoders' features, float32 ``[n, D]`` on the head's device, without gradient.

        A row depends only on its clip and prompt, so it can be cached. For `clips` and errors see `Reward.score`.
        """
        ...

    def loss(self, features: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns the scalar training loss of `features` ``[n, D]`` against the mean human `scores` ``[n]`` in
        0..100."""
        ...

    @classmethod
    def create(cls, models: Mapping[str, str], device: str = "cpu", seed: int = 0) -> Self:
        """Creates a new head over pretrained models: role -> folder or hub id. The class defines the roles.

        `seed` initialises the head. Raises `ConfigError` for a missing or unknown role and for a model that cannot be
        loaded.
        """
        ...
