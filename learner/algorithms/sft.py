"""Supervised fine-tuning on the best candidate: the diffusion loss of the clip with the highest reward.

    L_SFT = weight e_theta(w)

This is a baseline for the preference losses. It needs one forward pass and no reference. With `weight_by_gap` it is
reward-weighted regression (Peters & Schaal 2007), with GAPO's gap divided by its batch mean as the weight.

``douga finetune`` applies it to real clips, which is HuViDPO's first stage. As in the paper's public code, eps is
sampled, not obtained by DDIM inversion (`actors/ddim_inversion.py`). Deviations:
1. The public code inserts the clean first frame into x_t and excludes it from the error; here the frame is the
   condition, and the error covers all frames (`learner/algorithms/human_pairs.py`).
2. The paper trains the attention and temporal layers; here `learner.trainable` chooses (`common/models/trainable.py`).

| symbol | here | meaning |
|---|---|---|
| w | kept candidate 0 (chosen) | the best of the N candidates |
| e_theta | `LossInputs.policy` | mean squared v error of the policy |
| weight | `Selection.weights` | 1, or alpha^R~w - alpha^R~l with l the worst candidate |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from common.messages import Selection
from learner.algorithms.base import Algorithm, LossInputs, LossOutput, over_mean
from learner.algorithms.gapo import gap

if TYPE_CHECKING:
    from torch import Tensor


class Sft(Algorithm):
    """Supervised fine-tuning on the best candidate of every group."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "sft"``."""

        weight_by_gap: bool = Field(default=False, description="weigh clips by alpha^R_best - alpha^R_worst")
        alpha: float = Field(default=2.0, gt=1.0, description="base of the gap alpha^R_best - alpha^R_worst")

    needs_reference = False
    candidate_names = ("chosen",)

    def kept(self, candidates: int) -> int:
        """1: the best candidate."""
        return 1

    def select(self, rewards: Sequence[float]) -> Selection | None:
        """The best candidate, with the lowest index among equals. With `weight_by_gap`, equal rewards are a tie."""
        best = max(rewards)
        if not self.config.weight_by_gap:
            return Selection((rewards.index(best),), (1.0,))
        weight = gap(self.config.alpha, best, min(rewards))
        return Selection((rewards.index(best),), (weight,)) if weight > 0 else None

    def weights(self, selected: Tensor) -> Tensor:
        """Weights [n] with mean 1, from `selected` [n, 1]."""
        return over_mean(selected[:, 0])

    def loss(self, inputs: LossInputs) -> LossOutput:
        """weight * e_theta(w), [n]."""
        return LossOutput(inputs.weights * inputs.policy[:, 0], {})
