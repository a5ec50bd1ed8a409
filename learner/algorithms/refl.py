"""Reward feedback learning, ReFL (Xu et al. 2023, "ImageReward", algorithm 1; "OnlineVPO", arXiv 2412.15159, eq. 1).

    L_ReFL = E_c E_{x0'} [-r(x0', c)]

Noise x_T is denoised without a gradient until a random step among the last ones. From there the clean clip x0' is
predicted at once, with a gradient, decoded and scored.

OnlineVPO only says that the step is random; that it is among the last quarter, 10 of 40, is ImageReward's.

Deviations:
1. ImageReward applies a ReLU to r and adds the loss of pretraining; OnlineVPO's equation has neither.
2. All groups of an optimizer step stop at the same step, as in ImageReward's code, which draws one per batch.
3. `learner/rollout.py` lists what all methods with a reward's gradient have in common.

| symbol | here | meaning |
|---|---|---|
| c | `Batch.prompt_embeds`, `.image_latent` | caption and first frame |
| T, t | `Rollout.timesteps` | first step, random step |
| x0' | `Rollout.clean` | predicted from x_t |
| r | `Rollout.reward`, mean over frames | reward |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from learner.algorithms.reward_gradient import RewardGradient

if TYPE_CHECKING:
    from torch import Tensor

    from learner.rollout import Rollout


class Refl(RewardGradient):
    """The gradient of the reward, through one prediction of the clean clip."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "refl"``."""

        last_steps: float = Field(
            default=0.25,
            gt=0,
            le=1,
            description="the random step is among this fraction of the last denoising steps; 10 of 40 in the paper",
        )

    @property
    def rollout_share(self) -> float:
        """See `Algorithm.rollout_share`."""
        return 1 - self.config.last_steps / 2

    def reward(self, rollout: Rollout) -> Tensor:
        """See `RewardGradient.reward`."""
        import torch  # noqa: PLC0415 - see learner/algorithms/base.py

        steps = len(rollout.timesteps)
        late = max(1, math.floor(self.config.last_steps * steps))
        stop = steps - 1 - int(torch.randint(late, (), generator=rollout.draws("stop")))
        x = rollout.denoise(rollout.noise(), last=stop, gradient_steps=0)
        return rollout.reward(rollout.clean(x, stop)).mean(1)
