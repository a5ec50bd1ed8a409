"""Diffusion-DPO in literal numbers, and its invariants."""

from __future__ import annotations

import math

import pytest
import torch

from common.messages import Selection
from learner.algorithms.base import LossInputs
from learner.algorithms.dpo import Dpo, dpo_logits, dpo_loss
from tests.support.learner.algorithms import BETTER, SWAPPED, inputs

LOG2 = 0.6931472


def dpo(**settings: float) -> Dpo:
    return Dpo(Dpo.Config(name="dpo", **settings))


def test_by_hand() -> None:
    # logit = -1/2 x 5 x (-0.1 - 0.1) = 0.5;  -log sigma(0.5) = log(1 + e^-0.5) = 0.4740770
    made = dpo(beta=5.0).loss(BETTER)
    assert dpo_logits(BETTER, 5.0).item() == pytest.approx(0.5)
    assert made.loss.item() == pytest.approx(0.4740770)
    assert {name: value.item() for name, value in made.metrics.items()} == pytest.approx(
        {"dpo_logits": 0.5, "reward_margin": 0.25, "chosen_error": -0.1, "rejected_error": 0.1, "accuracy": 1.0}
    )


def test_the_accuracy_is_the_share_of_pairs_that_the_policy_ranks_as_the_rewards_do() -> None:
    def accuracy(one: LossInputs) -> float:
        return dpo(beta=5.0).loss(one).metrics["accuracy"].mean().item()

    start = inputs(policy=(0.7, 0.3), reference=(0.7, 0.3))
    assert [accuracy(one) for one in (BETTER, SWAPPED, start)] == [1.0, 0.0, 0.0]
    reference = torch.cat([one.reference for one in (BETTER, SWAPPED, BETTER, start) if one.reference is not None])
    policy = torch.cat([BETTER.policy, SWAPPED.policy, BETTER.policy, start.policy])
    assert accuracy(LossInputs(policy, reference, torch.ones(4), torch.tensor([[0.75, 0.5]] * 4))) == 0.5


def test_beta_scales_the_logits() -> None:
    assert dpo_logits(BETTER, 5000.0).item() == pytest.approx(500.0, rel=1e-5)


def test_swapping_chosen_and_rejected_flips_the_logits() -> None:
    assert dpo_logits(SWAPPED, 5.0).item() == pytest.approx(-0.5)
    assert dpo_loss(dpo_logits(SWAPPED, 5.0)).item() == pytest.approx(0.9740770)  # log(1 + e^0.5)


def test_a_policy_equal_to_the_reference_has_the_loss_log_two() -> None:
    start = inputs(policy=(0.7, 0.3), reference=(0.7, 0.3))
    assert dpo_logits(start, 5000.0).item() == 0.0
    assert dpo().loss(start).loss.item() == pytest.approx(LOG2)


def test_a_huge_logit_stays_finite() -> None:
    worst = inputs(policy=(1.0, 0.0), reference=(0.0, 1.0))  # logit = -5000
    best = inputs(policy=(0.0, 1.0), reference=(1.0, 0.0))
    assert dpo().loss(worst).loss.item() == pytest.approx(5000.0)
    assert math.isfinite(dpo().loss(best).loss.item())


def test_best_and_worst_are_kept_with_equal_weights() -> None:
    assert dpo().select([0.25, 0.5, 0.25, 0.125]) == Selection((1, 3), (1.0, 1.0))
    assert dpo().select([0.5, 0.5]) is None
    assert dpo().select([0.2, 0.9, 0.2, 0.9]) == Selection((1, 0), (1.0, 1.0))  # the lowest index among equals
    assert dpo().kept(4) == 2


def test_every_pair_has_weight_one() -> None:
    assert dpo().weights(torch.ones(3, 2)).tolist() == [1.0, 1.0, 1.0]


def test_the_reference_is_copied_every_k_steps() -> None:
    assert [dpo(refresh_every=3).reference_update(step) for step in range(1, 7)] == [0, 0, 1, 0, 0, 1]
    assert not any(dpo().reference_update(step) for step in range(1, 100))
