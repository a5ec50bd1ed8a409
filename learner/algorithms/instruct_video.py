"""InstructVideo (Yuan et al., CVPR 2024, arXiv 2312.12490): reward fine-tuning as editing of sampled clips.

A sampled clip is made noisy up to a fraction of the denoising chain, and only that part is denoised again, with a
gradient through its last step. An image reward scores one random frame in each of S segments of the clip (segmental
video reward), and frames far from the middle count less (temporally attenuated reward):

    L = 1 - 1/S sum_s exp(-lambda |g_s - G/2|) r(frame g_s)

Segments have a length of floor(G / S) frames; G/2 is rounded down. The defaults are those of the published code.

Deviations:
1. The constant 1 is left out: it has no gradient.
2. The clips come from the policy while it is trained; the paper samples them once, from the base model. A candidate
   set of the base model (`douga collect`, ``--candidates``) does the same.
3. No offset noise (strength 0.1 in the code), which suits models that predict the noise.
4. `learner/rollout.py` lists what all methods with a reward's gradient have in common.

| symbol | here | meaning |
|---|---|---|
| S | `algorithm.segments` | segments of a clip |
| g_s | random, 0 .. G-1 | the scored frame of segment s |
| G | | frames of a clip |
| lambda | `algorithm.attenuation` | how fast the weight falls |
| r | `Rollout.reward` | reward of a frame |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from learner.algorithms.reward_gradient import RewardGradient

if TYPE_CHECKING:
    from torch import Tensor

    from learner.rollout import Rollout


class InstructVideo(RewardGradient):
    """The gradient of an image reward, through the last steps of a partly repeated denoising chain."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "instruct_video"``."""

        start: float = Field(
            default=0.6, gt=0, le=1, description="fraction of the denoising steps that are taken again"
        )
        gradient_steps: int = Field(default=1, ge=1, description="the last steps that the gradient goes through")
        segments: int = Field(default=4, ge=1, description="segments of a clip; one frame of each is scored")
        attenuation: float = Field(
            default=1.0, ge=0, description="a frame weighs exp(-attenuation * distance to the middle frame)"
        )

    @property
    def gradient_passes(self) -> int:
        """See `Algorithm.gradient_passes`."""
        return self.config.gradient_steps

    @property
    def rollout_share(self) -> float:
        """See `Algorithm.rollout_share`."""
        return self.config.start

    def reward(self, rollout: Rollout) -> Tensor:
        """See `RewardGradient.reward`. Raises `ValueError` for a clip with fewer frames than segments."""
        steps = len(rollout.timesteps)
        first = steps - max(1, int(self.config.start * steps))
        clean = rollout.denoise(rollout.noisy(0, first), first, gradient_steps=self.config.gradient_steps)
        rewards = rollout.reward(clean)
        return (self.frame_weights(rollout, rewards.shape[1]).to(rewards) * rewards).sum(1)

    def frame_weights(self, rollout: Rollout, frames: int) -> Tensor:
        """exp(-lambda |g_s - G/2|) / S at the scored frames, 0 elsewhere, [n, frames]."""
        import torch  # noqa: PLC0415 - see learner/algorithms/base.py

        segments = self.config.segments
        if frames < segments:
            raise ValueError(f"algorithm.segments = {segments}: a clip has {frames} frames, at least one for each")
        span, weights = frames // segments, torch.zeros(len(rollout.batch), frames)
        for row, ordinal in zip(weights, rollout.batch.ordinals, strict=True):
            inside = torch.randint(span, (segments,), generator=rollout.draws("frames", ordinal))
            shown = inside + span * torch.arange(segments)
            row[shown] = torch.exp(-self.config.attenuation * (shown - frames // 2).abs()) / segments
        return weights
