"""VADER (Prabhudesai et al. 2024, "Video Diffusion Alignment via Reward Gradients", arXiv 2407.08737).

    L = -R(decode(x0)),    x0 denoised from noise, with a gradient through the last K steps

Truncating the gradient to K steps keeps its memory and its variance low; K = 1 in the published code. To save more
memory, the code decodes and scores one random frame of each clip.

Deviations:
1. The rewards are those of the run, for all frames or some random ones; the paper combines image rewards, or uses
   V-JEPA's or a detector's loss. Rewards over time (the AnimeReward heads) should see all frames: ``frames = 0``.
2. `learner/rollout.py` lists what all methods with a reward's gradient have in common.

| symbol | here | meaning |
|---|---|---|
| K | `algorithm.gradient_steps` | denoising steps with a gradient |
| R | `Rollout.reward` | mean over the scored frames |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from learner.algorithms.reward_gradient import RewardGradient

if TYPE_CHECKING:
    from torch import Tensor

    from learner.rollout import Rollout


class Vader(RewardGradient):
    """The gradient of the reward, through the last steps of the whole denoising chain."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "vader"``."""

        gradient_steps: int = Field(
            default=1, ge=1, description="K: the last denoising steps that the gradient goes through"
        )
        frames: int = Field(default=1, ge=0, description="random frames of each clip that are scored; 0: all")

    @property
    def gradient_passes(self) -> int:
        """See `Algorithm.gradient_passes`."""
        return self.config.gradient_steps

    @property
    def rollout_share(self) -> float:
        """See `Algorithm.rollout_share`."""
        return 1.0

    def reward(self, rollout: Rollout) -> Tensor:
        """See `RewardGradient.reward`."""
        import torch  # noqa: PLC0415 - see learner/algorithms/base.py

        clean = rollout.denoise(rollout.noise(), gradient_steps=self.config.gradient_steps)
        rewards = rollout.reward(clean)
        count = rewards.shape[1]
        if not 0 < self.config.frames < count:
            return rewards.mean(1)
        shown = [
            torch.randperm(count, generator=rollout.draws("frames", ordinal))[: self.config.frames]
            for ordinal in rollout.batch.ordinals
        ]
        return rewards.gather(1, torch.stack(shown).to(rewards.device)).mean(1)
