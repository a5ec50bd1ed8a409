"""The losses in literal numbers, and their invariants."""

from __future__ import annotations

import math

import pytest
import torch

from learner.algorithms import PairErrors, inside, pair_losses, pair_weights
from learner.algorithms.dpo import dpo_loss
from learner.algorithms.gapo import gapo_loss
from learner.algorithms.sft import sft_loss

LOG2 = 0.6931472


def errors(policy_winner: float, policy_loser: float, reference_winner: float, reference_loser: float) -> PairErrors:
    values = (policy_winner, policy_loser, reference_winner, reference_loser)
    return PairErrors(*(torch.tensor([value]) for value in values))


# The policy fits the winner 0.1 better than the reference, and the loser 0.1 worse.
BETTER = errors(0.5, 0.9, 0.6, 0.8)
SWAPPED = errors(0.9, 0.5, 0.8, 0.6)


def test_by_hand() -> None:
    # inside = -1/2 x 5 x (-0.1 - 0.1) = 0.5;  -log sigma(0.5) = log(1 + e^-0.5) = 0.4740770;  x 0.25 = 0.1185192
    assert inside(BETTER, 5.0).item() == pytest.approx(0.5)
    assert dpo_loss(BETTER, 5.0).item() == pytest.approx(0.4740770)
    assert gapo_loss(BETTER, torch.tensor([0.25]), 5.0).item() == pytest.approx(0.1185192)
    assert sft_loss(BETTER, torch.tensor([2.0])).item() == pytest.approx(1.0)


def test_beta_scales_inside() -> None:
    assert inside(BETTER, 5000.0).item() == pytest.approx(500.0, rel=1e-5)


def test_swapping_winner_and_loser_flips_inside() -> None:
    assert inside(SWAPPED, 5.0).item() == pytest.approx(-0.5)
    # log(1 + e^0.5)
    assert dpo_loss(SWAPPED, 5.0).item() == pytest.approx(0.9740770)


def test_policy_equal_to_reference_gives_gap_log_two() -> None:
    start = errors(0.7, 0.3, 0.7, 0.3)
    assert inside(start, 5000.0).item() == 0.0
    assert dpo_loss(start, 5000.0).item() == pytest.approx(LOG2)
    assert gapo_loss(start, torch.tensor([0.1]), 5000.0).item() == pytest.approx(0.06931472)


def test_gap_one_is_dpo_and_alpha_one_is_nothing() -> None:
    assert torch.equal(gapo_loss(BETTER, torch.ones(1), 5.0), dpo_loss(BETTER, 5.0))
    # alpha = 1: 1^0.9 - 1^0.2 = 0
    gap = torch.tensor([1.0**0.9 - 1.0**0.2])
    assert gapo_loss(BETTER, gap, 5.0).item() == 0.0


def test_the_gap_scales_the_gradient() -> None:
    """dL/d e(w) = gap x beta/2 x sigma(-inside) = 0.25 x 2.5 x 0.3775407 = 0.2359629."""
    winner = torch.tensor([0.5], requires_grad=True)
    moving = PairErrors(winner, BETTER.policy_loser, BETTER.reference_winner, BETTER.reference_loser)
    gapo_loss(moving, torch.tensor([0.25]), 5.0).sum().backward()
    assert winner.grad is not None
    assert winner.grad.item() == pytest.approx(0.2359629)


def test_a_huge_inside_stays_finite() -> None:
    worst = errors(1.0, 0.0, 0.0, 1.0)  # inside = -5000
    assert dpo_loss(worst, 5000.0).item() == pytest.approx(5000.0)
    assert math.isfinite(dpo_loss(errors(0.0, 1.0, 1.0, 0.0), 5000.0).item())


def test_weights_per_loss() -> None:
    gaps = torch.tensor([0.1, 0.3])
    assert torch.equal(pair_weights("gapo", gaps, normalise_gap=False), gaps)
    assert pair_weights("gapo", gaps, normalise_gap=True).tolist() == pytest.approx([0.5, 1.5])
    assert pair_weights("dpo", gaps, normalise_gap=True).tolist() == [1.0, 1.0]
    assert pair_weights("sft", gaps, normalise_gap=False).tolist() == pytest.approx([0.5, 1.5])
    nothing = torch.zeros(2)
    assert pair_weights("gapo", nothing, normalise_gap=True).tolist() == [0.0, 0.0]
    assert pair_weights("sft", nothing, normalise_gap=False).tolist() == [1.0, 1.0]


def test_the_loss_is_chosen_by_name() -> None:
    weight = torch.tensor([0.25])
    assert pair_losses("gapo", BETTER, weight, 5.0).item() == pytest.approx(0.1185192)
    assert pair_losses("dpo", BETTER, weight, 5.0).item() == pytest.approx(0.4740770)
    assert pair_losses("sft", BETTER, weight, 5.0).item() == pytest.approx(0.125)
