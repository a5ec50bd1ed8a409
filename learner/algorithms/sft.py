"""Supervised fine-tuning on the best candidate: the diffusion loss of the clip that the rewards prefer.

    L_SFT = weight e_theta(w)

A control for the preference losses: one forward pass, no reference. With `weight_by_gap` it is reward-weighted
regression (Peters & Schaal 2007) with GAPO's gap as the weight, divided by its batch mean.

``douga finetune`` is this on real clips, HuViDPO's first stage: eps is drawn, as in its public code, and not inverted
(`actors/ddim_inversion.py`). Deviation: there the first frame stands clean in x_t and is left out of the error; here
it is the condition, and the error is over all frames (`learner/algorithms/human_pairs.py`).

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
    """Fits the best candidate of every group."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "sft"``."""

        weight_by_gap: bool = Field(default=False, description="weigh clips by alpha^R_best - alpha^R_worst")
        alpha: float = Field(default=2.0, gt=1.0, description="base of that gap")

    needs_reference = False
    candidate_names = ("chosen",)

    def kept(self, candidates: int) -> int:
        """The best one."""
        return 1

    def select(self, rewards: Sequence[float]) -> Selection | None:
        """The best candidate, the lowest index among equals. With `weight_by_gap` equal rewards are a tie."""
        best = max(rewards)
        if not self.config.weight_by_gap:
            return Selection((rewards.index(best),), (1.0,))
        weight = gap(self.config.alpha, best, min(rewards))
        return Selection((rewards.index(best),), (weight,)) if weight > 0 else None

    def weights(self, selected: Tensor) -> Tensor:
        """Weights of mean 1, [n]."""
        return over_mean(selected[:, 0])

    def loss(self, inputs: LossInputs) -> LossOutput:
        """weight e_theta(w), [n]."""
        return LossOutput(inputs.weights * inputs.policy[:, 0], {})
