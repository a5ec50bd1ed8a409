"""Fine-tuning on the best candidate."""

from __future__ import annotations

import pytest
import torch

from common.messages import Selection
from learner.algorithms.base import LossInputs
from learner.algorithms.sft import Sft


def sft(**settings: object) -> Sft:
    return Sft(Sft.Config(name="sft", **settings))


def test_the_best_is_kept_with_weight_one() -> None:
    assert sft().select([0.25, 0.75, 0.75]) == Selection((1,), (1.0,))
    assert sft().select([0.5, 0.5]) == Selection((0,), (1.0,))  # nothing is compared: no tie
    assert sft().select([0.0]) == Selection((0,), (1.0,))
    assert sft().kept(4) == 1


def test_by_hand() -> None:
    only = LossInputs(torch.tensor([[0.5], [0.2]]), None, torch.tensor([2.0, 1.0]), torch.ones(2, 1))
    made = sft().loss(only)
    assert made.loss.tolist() == pytest.approx([1.0, 0.2])
    assert not made.metrics


def test_weights_by_the_gap_have_the_mean_one() -> None:
    one, other = sft(weight_by_gap=True).select([0.5, 0.75]), sft(weight_by_gap=True).select([0.0, 1.0])
    assert one is not None
    assert other is not None
    assert (one.candidates, other.candidates) == ((1,), (1,))
    assert (*one.weights, *other.weights) == pytest.approx((0.2675793, 1.0))  # 2^0.75 - 2^0.5, 2 - 1
    weights = sft(weight_by_gap=True).weights(torch.tensor([one.weights, other.weights]))
    assert weights.tolist() == pytest.approx([0.4221895, 1.5778105])
    assert sft(weight_by_gap=True).select([0.5, 0.5]) is None


def test_there_is_no_reference() -> None:
    assert not Sft.needs_reference
    assert not any(sft().reference_update(step) for step in range(1, 10))
