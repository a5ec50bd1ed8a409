"""Gap-Aware Preference Optimization, GAPO ("Aligning Anime Video Generation with Human Feedback", 2025).

Deviations, first:
1. Optional, off by default: gaps divided by their batch mean (`weights.normalise_gap`). Small gaps shrink the step 6 to
   100 times; dividing gives the step back and keeps the order of the pairs.
2. The base loss is `dpo_loss` with its own deviations.

| symbol | here | meaning |
|---|---|---|
| R~w, R~l | `PreferencePair.winner_reward`, `.loser_reward` | rewards of winner and loser in [0, 1] |
| alpha | `learner.alpha` | base of the gain, >= 1; at 1 every gap is 0 |
| gap | `gap` | alpha^R~w - alpha^R~l, made with the pair |
| L_GAPO | `gapo_loss` | gap L_DPO |

The gap multiplies the loss, so it scales the gradient; it is no margin inside the sigmoid.
"""

from __future__ import annotations

import torch

from learner.algorithms.dpo import dpo_loss
from learner.algorithms.v_prediction import PairErrors


def gapo_loss(errors: PairErrors, gap: torch.Tensor, beta: float) -> torch.Tensor:
    """gap [n] times the DPO loss, [n]."""
    return gap * dpo_loss(errors, beta)


def normalised_gaps(gap: torch.Tensor) -> torch.Tensor:
    """`gap` [n] of the whole global batch over its mean; all-zero gaps stay zero."""
    mean = gap.mean()
    return gap / mean if mean > 0 else gap
