"""Errors of one pair, for tests of losses."""

from __future__ import annotations

from dataclasses import replace

import torch

from learner.algorithms.base import LossInputs


def inputs(policy: tuple[float, float], reference: tuple[float, float]) -> LossInputs:
    """One pair of weight 1, whose rewards are 0.75 and 0.5. Errors are (chosen, rejected)."""
    return LossInputs(torch.tensor([policy]), torch.tensor([reference]), torch.ones(1), torch.tensor([[0.75, 0.5]]))


def weighted(one: LossInputs, weight: float) -> LossInputs:
    """The same with another weight."""
    return replace(one, weights=torch.tensor([weight]))


# The policy fits the chosen clip 0.1 better than the reference, and the rejected one 0.1 worse.
BETTER = inputs(policy=(0.5, 0.9), reference=(0.6, 0.8))
SWAPPED = inputs(policy=(0.9, 0.5), reference=(0.8, 0.6))
