"""The losses by the name the config gives them: pure functions of the pairs' v errors.

`gapo` and `dpo` compare with the reference, `sft` fits the winners. A loss gives one value per pair; the step's loss is
their mean over the global batch, and weights come from the whole batch, so that micro-batches and ranks add up to it.
"""

from __future__ import annotations

from typing import Literal

import torch

from learner.algorithms.dpo import dpo_loss, inside
from learner.algorithms.gapo import gapo_loss, normalised_gaps
from learner.algorithms.sft import sft_loss, sft_weights
from learner.algorithms.v_prediction import Draw, PairErrors, Predict, draw, v_errors

LossName = Literal["gapo", "dpo", "sft"]

__all__ = ["Draw", "LossName", "PairErrors", "Predict", "draw", "inside", "pair_losses", "pair_weights", "v_errors"]


def pair_weights(name: LossName, gaps: torch.Tensor, normalise_gap: bool) -> torch.Tensor:
    """What multiplies each pair's loss, float32 [n], from the gaps of the whole global batch."""
    if name == "dpo":
        return torch.ones_like(gaps)
    if name == "sft":
        return sft_weights(gaps)
    return normalised_gaps(gaps) if normalise_gap else gaps


def pair_losses(name: LossName, errors: PairErrors, weights: torch.Tensor, beta: float) -> torch.Tensor:
    """The loss of each pair, float32 [n]."""
    if name == "sft":
        return sft_loss(errors, weights)
    if name == "dpo":
        return dpo_loss(errors, beta)
    return gapo_loss(errors, weights, beta)
