"""Diffusion-DPO on the v error (Wallace et al. 2024, "Diffusion Model Alignment Using Direct Preference Optimization").

Deviations, first:
1. The paper's equation 14 has the noise error and a factor T omega(lambda_t). Here the error is in v, unweighted,
   without T, as the GAPO authors' code has it: (x0_hat - x0)^2 / (1 - a_t) = (v_hat - v*)^2.
2. The temperature is halved (inside = -beta/2 ...) and errors are means, not sums: the convention behind beta = 5000.

| symbol | here | meaning |
|---|---|---|
| e_theta, e_ref | `PairErrors` | mean squared v error of policy and reference |
| beta | `beta` | temperature: how far the policy may move from the reference |
| inside | `inside` | -beta/2 [ (e_theta(w) - e_ref(w)) - (e_theta(l) - e_ref(l)) ] |
| L_DPO | `dpo_loss` | -log sigma(inside) |

At the start policy = reference: inside = 0 and the loss is log 2.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from learner.algorithms.v_prediction import PairErrors


def inside(errors: PairErrors, beta: float) -> torch.Tensor:
    """The argument of the sigmoid, [n]: above 0 where the policy prefers the winner more than the reference does."""
    return -0.5 * beta * (errors.winner_gain - errors.loser_gain)


def dpo_loss(errors: PairErrors, beta: float) -> torch.Tensor:
    """-log sigma(inside), [n]; softplus form, finite for every finite inside."""
    return softplus(-inside(errors, beta))
