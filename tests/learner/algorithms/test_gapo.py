"""GAPO in literal numbers, and its invariants."""

from __future__ import annotations

import pytest
import torch

from common.config import LearnerConfig, load_config
from common.errors import ConfigError
from learner.algorithms.base import LossInputs
from learner.algorithms.dpo import Dpo
from learner.algorithms.gapo import Gapo, gap
from learner.optimizer import make_optimizer
from tests.support.learner.algorithms import BETTER, inputs, weighted


def gapo(**settings: float) -> Gapo:
    return Gapo(Gapo.Config(name="gapo", **settings))


def test_by_hand() -> None:
    # log(1 + e^-0.5) = 0.4740770; x 0.25 = 0.1185192; 2^0.75 - 2^0.5 = 1.6817928 - 1.4142136 = 0.2675793
    made = gapo(beta=5.0).loss(weighted(BETTER, 0.25))
    assert made.loss.item() == pytest.approx(0.1185192)
    assert made.metrics["gap"].item() == pytest.approx(0.2675793)


def test_the_gap_of_two_rewards() -> None:
    assert gap(2.0, 1.0, 0.0) == 1.0
    assert gap(2.0, 0.75, 0.5) == pytest.approx(0.2675793)
    assert gap(3.0, 0.5, 0.25) == pytest.approx(0.4159768)  # 1.7320508 - 1.3160740


def test_a_group_is_weighted_by_its_gap() -> None:
    kept = gapo().select([0.5, 0.75, 0.6])
    assert kept is not None
    assert kept.candidates == (1, 0)
    assert kept.weights == pytest.approx((0.2675793, 0.2675793))


def test_small_gaps_are_ties() -> None:
    assert gapo(min_gap=0.3).select([0.5, 0.75]) is None
    assert gapo(min_gap=0.2).select([0.5, 0.75]) is not None
    assert gapo().select([0.5, 0.5]) is None


def test_a_weight_of_one_is_dpo() -> None:
    dpo = Dpo(Dpo.Config(name="dpo", beta=5.0))
    assert torch.equal(gapo(beta=5.0).loss(BETTER).loss, dpo.loss(BETTER).loss)


def test_the_gap_scales_the_gradient() -> None:
    """dL/d e(w) = gap x beta/2 x sigma(-logit) = 0.25 x 2.5 x 0.3775407 = 0.2359629."""
    policy = torch.tensor([[0.5, 0.9]], requires_grad=True)
    moving = LossInputs(policy, BETTER.reference, torch.tensor([0.25]), BETTER.rewards)
    gapo(beta=5.0).loss(moving).loss.sum().backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([0.2359629, -0.2359629])


def test_normalised_gaps_have_the_mean_one() -> None:
    gaps = torch.tensor([[0.1, 0.1], [0.3, 0.3]])
    assert gapo().weights(gaps).tolist() == pytest.approx([0.1, 0.3])
    assert gapo(normalise_gap=True).weights(gaps).tolist() == pytest.approx([0.5, 1.5])
    assert gapo(normalise_gap=True).weights(torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def test_normalised_batches_weigh_the_same() -> None:
    """A batch of small gaps and one of large gaps, whose gaps have the same proportions."""
    small, large = torch.tensor([[0.01, 0.01], [0.03, 0.03]]), torch.tensor([[0.2, 0.2], [0.6, 0.6]])
    assert (gapo().weights(large) / gapo().weights(small)).tolist() == pytest.approx([20.0, 20.0])
    own = gapo(normalise_gap=True)
    torch.testing.assert_close(own.weights(small), own.weights(large))


def test_the_optimizer_does_not_see_a_constant_factor() -> None:
    """Why small gaps as such need no remedy: AdamW makes the same steps if all of them are 100 times smaller."""
    weights = []
    for factor in (1.0, 0.01):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = make_optimizer([weight], LearnerConfig(lr=0.1))
        for step in range(1, 6):
            weight.grad = factor * torch.tensor([0.3, -0.1]) * step
            optimizer.step()
        weights.append(weight.detach())
    assert (weights[0] - torch.tensor([1.0, -2.0])).abs().min() > 0.3
    torch.testing.assert_close(*weights, rtol=1e-5, atol=0)


def test_at_the_start_the_loss_is_gap_log_two() -> None:
    start = weighted(inputs(policy=(0.7, 0.3), reference=(0.7, 0.3)), 0.1)
    assert gapo().loss(start).loss.item() == pytest.approx(0.06931472)


def test_an_alpha_that_makes_every_gap_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--algorithm\.alpha = '1': Input should be greater than 1"):
        load_config(flags={"algorithm.alpha": "1"})
