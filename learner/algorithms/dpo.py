"""Diffusion-DPO on the v error (Wallace et al. 2024, "Diffusion Model Alignment Using Direct Preference Optimization"),
applied to the best and the worst of N samples of the current policy, with a reference that is refreshed every K steps
(Zhang et al. 2024, "OnlineVPO").

    L = -log sigma(-beta T omega(lambda_t) [ (n_theta(w) - n_ref(w)) - (n_theta(l) - n_ref(l)) ])

is equation 14 of Wallace et al. and equation 4 of GAPO, with n the squared errors of the noise. Equation 3 of OnlineVPO
has log-likelihoods in their place; it is printed without the minus, and its algorithm ascends.

Deviations from the papers:
1. They use the noise error and the factor T omega(lambda_t). This module uses the unweighted v error
   without T, like the GAPO authors' code: (x0_hat - x0)^2 / (1 - a_t) = (v_hat - v*)^2.
2. The temperature is halved (logit = -beta/2 ...), and errors are means instead of sums. beta = 5000 assumes both.

| symbol | here | meaning |
|---|---|---|
| w, l | kept candidates 0 (chosen) and 1 (rejected) | best and worst of the N candidates |
| e_theta, e_ref | `LossInputs.policy`, `.reference` | mean squared v error of policy and reference |
| beta | `algorithm.beta` | temperature: how far the policy may move from the reference |
| logit | `dpo_logits` | -beta/2 [ (e_theta(w) - e_ref(w)) - (e_theta(l) - e_ref(l)) ] |
| L_DPO | `dpo_loss` | -log sigma(logit) |
| K | `algorithm.refresh_every` | optimizer steps between refreshes of the reference |

At the start the policy equals the reference, so every logit is 0 and the loss is log 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from common.messages import Selection
from learner.algorithms.base import Algorithm, LossInputs, LossOutput, MetricSpec, best_and_worst, due

if TYPE_CHECKING:
    from torch import Tensor

PREFERENCE_METRICS = (
    MetricSpec("dpo_logits", "Mean argument of the sigmoid. 0 after a refresh; rises as the policy learns the pairs."),
    MetricSpec("reward_margin", "Mean reward of the chosen less that of the rejected candidates, 0 .. 1."),
    MetricSpec("chosen_error", "Mean v error of the chosen less the reference's. Below 0: the policy fits better."),
    MetricSpec("rejected_error", "The same of the rejected. Both rising: likelihood is displaced, quality will fall."),
    MetricSpec("accuracy", "Share of pairs whose dpo_logits are above 0: the policy prefers the chosen, 0 .. 1."),
)


class Dpo(Algorithm):
    """Plain DPO: all pairs have weight 1."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "dpo"``."""

        beta: float = Field(default=5000.0, gt=0, description="DPO temperature (half-beta convention, mean v error)")
        refresh_every: int = Field(
            default=0, ge=0, description="optimizer steps between refreshes of the reference (K); 0: never"
        )

    metrics = PREFERENCE_METRICS
    candidate_names = ("chosen", "rejected")
    min_candidates = 2

    def kept(self, candidates: int) -> int:
        """2: the chosen and the rejected candidate."""
        return 2

    def select(self, rewards: Sequence[float]) -> Selection | None:
        """The best and the worst candidate; a tie if all rewards are equal."""
        ends = best_and_worst(rewards)
        return None if ends is None else Selection(ends, (1.0, 1.0))

    def weights(self, selected: Tensor) -> Tensor:
        """One weight per pair, [n], from `selected` [n, 2]."""
        return selected[:, 0]

    def loss(self, inputs: LossInputs) -> LossOutput:
        """weight * L_DPO, [n]."""
        logits = dpo_logits(inputs, self.config.beta)
        return LossOutput(inputs.weights * dpo_loss(logits), preference_metrics(inputs, logits))

    def reference_update(self, step: int) -> float:
        """Copies the policy every K steps."""
        return float(due(step, self.config.refresh_every))


def gains(inputs: LossInputs) -> Tensor:
    """e_theta - e_ref, [n, 2]; negative if the policy fits the clip better. `ValueError` without a reference."""
    if inputs.reference is None:
        raise ValueError("DPO needs the errors of a reference")
    return inputs.policy - inputs.reference


def dpo_logits(inputs: LossInputs, beta: float) -> Tensor:
    """The argument of the sigmoid, [n]; positive if the policy prefers the chosen clip more than the reference does."""
    gain = gains(inputs)
    return -0.5 * beta * (gain[:, 0] - gain[:, 1])


def dpo_loss(logits: Tensor) -> Tensor:
    """-log sigma(logits), [n], computed as softplus(-logits), which does not overflow."""
    from torch.nn.functional import softplus  # noqa: PLC0415 - see base.py

    return softplus(-logits)


def preference_metrics(inputs: LossInputs, logits: Tensor) -> dict[str, Tensor]:
    """The values of `PREFERENCE_METRICS`, [n] each."""
    gain = gains(inputs)
    return {
        "dpo_logits": logits,
        "reward_margin": inputs.rewards[:, 0] - inputs.rewards[:, 1],
        "chosen_error": gain[:, 0],
        "rejected_error": gain[:, 1],
        "accuracy": (logits > 0).float(),
    }
