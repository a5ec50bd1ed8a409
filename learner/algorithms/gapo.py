"""Gap-Aware Preference Optimization, GAPO ("Aligning Anime Video Generation with Human Feedback", arXiv:2504.10044).

DPO on the best and the worst of N candidates. Each pair is weighted by the gap between its rewards (equations 12, 13):

    gap = alpha^R~w - alpha^R~l            L_GAPO = gap L_DPO

Deviations from the paper:
1. `normalise_gap` (off by default) divides the gaps by their batch mean. It keeps the weights of the pairs within a
   batch and removes those between batches: a step on small gaps counts as much as one on large gaps. It is no remedy
   for gaps that are small everywhere: AdamW divides by the gradient's running size, so a constant factor cancels
   (gradient clipping, `learner.clip_norm`, does see it).
2. The base loss is `dpo_loss`, with the deviations listed in `learner/algorithms/dpo.py`.

| symbol | here | range | meaning |
|---|---|---|---|
| R~w, R~l | `rewards` of candidates 0 and 1 | [0, 1] | rewards of the chosen and the rejected candidate |
| alpha | `algorithm.alpha` | > 1 | base of the gap; at 1 every gap would be 0 |
| gap | `gap`, `Selection.weights` | [0, alpha - 1] | the pair's weight |

The paper normalises R to R~ without saying how. Here each dimension is divided by 100 and clamped to [0, 1], so with
equal weights of the six AnimeReward dimensions R~ is R / 100 (`common/reward_composition.py`). The gap scales
the loss and so the gradient; it is not a margin inside the sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from common.messages import Selection
from learner.algorithms.base import LossInputs, LossOutput, MetricSpec, best_and_worst, over_mean
from learner.algorithms.dpo import PREFERENCE_METRICS, Dpo, dpo_logits, dpo_loss, preference_metrics

if TYPE_CHECKING:
    from torch import Tensor


class Gapo(Dpo):
    """DPO with each pair weighted by its gap."""

    class Config(Dpo.Config):
        """``[algorithm] name = "gapo"``."""

        alpha: float = Field(default=2.0, gt=1.0, description="base of the gap alpha^R_chosen - alpha^R_rejected")
        min_gap: float = Field(default=0.0, ge=0, description="groups with a smaller gap are ties and not trained on")
        normalise_gap: bool = Field(
            default=False, description="divide gaps by their batch mean (not in the paper): all batches weigh the same"
        )

    metrics = (
        *PREFERENCE_METRICS,
        MetricSpec("gap", "Mean gap alpha^R_chosen - alpha^R_rejected, the loss's factor, 0 .. alpha - 1."),
    )

    def select(self, rewards: Sequence[float]) -> Selection | None:
        """Best and worst, weighted by their gap; a tie if all rewards are equal or the gap is below `min_gap`."""
        ends = best_and_worst(rewards)
        if ends is None:
            return None
        weight = gap(self.config.alpha, *(rewards[index] for index in ends))
        return Selection(ends, (weight, weight)) if weight >= self.config.min_gap else None

    def weights(self, selected: Tensor) -> Tensor:
        """The gap of each pair, [n], from `selected` [n, 2]; mean 1 with `normalise_gap`."""
        gaps = selected[:, 0]
        return over_mean(gaps) if self.config.normalise_gap else gaps

    def loss(self, inputs: LossInputs) -> LossOutput:
        """gap * L_DPO, [n]."""
        logits = dpo_logits(inputs, self.config.beta)
        best, worst = inputs.rewards[:, 0], inputs.rewards[:, 1]
        metrics = preference_metrics(inputs, logits) | {"gap": self.config.alpha**best - self.config.alpha**worst}
        return LossOutput(inputs.weights * dpo_loss(logits), metrics)


def gap(alpha: float, chosen: float, rejected: float) -> float:
    """alpha^R~w - alpha^R~l, in [0, alpha - 1] for chosen >= rejected, both in [0, 1]."""
    return alpha**chosen - alpha**rejected
