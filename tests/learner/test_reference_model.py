"""Refreshing the reference copies the policy to it and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import GuardrailsConfig
from common.errors import ConfigError
from learner.algorithms.base import LossInputs
from learner.algorithms.dpo import dpo_logits
from learner.batch import collate
from learner.learner import Learner
from learner.reference_model import module_tensors
from tests.support.learner.fakes import MemoryExchange, make_group, reference_digest, tiny_config, tiny_model

CASES = [
    ("full", 0, "whole"),
    ("full", 0, "host"),
    ("lora", 0, "whole"),
    ("full", 3, "whole"),
    ("full", 2, "sharded"),
    ("full", 3, "sharded"),
    ("lora", 3, "whole"),
]


def start(folder: Path, kind: str, stage: int, place: str, **settings: Any) -> tuple[Learner, Any]:
    config = tiny_config(train=kind, zero_stage=stage, reference=place, **settings)
    return Learner(tiny_model(folder / "model"), config, folder / "run"), MemoryExchange()


def largest_logit(learner: Learner) -> float:
    pairs = collate([make_group(100), make_group(101)])
    inputs = LossInputs(*learner.errors(pairs, pairs.ordinals, 1), pairs.weights[:, 0], pairs.rewards)
    return dpo_logits(inputs, 5000.0).abs().max().item()


@pytest.mark.parametrize(("kind", "stage", "place"), CASES)
def test_refreshing_every_second_step(tmp_path: Path, kind: str, stage: int, place: str) -> None:
    learner, exchange = start(tmp_path, kind, stage, place, algorithm={"refresh_every": 2})
    base = reference_digest(learner)
    assert learner.policy_digest() == base
    first = learner.work(exchange)
    moved = learner.policy_digest()
    assert first is not None
    assert not first.refreshed
    assert first.metrics["dpo_logits"] == 0.0
    assert first.loss == pytest.approx(0.25 * 0.6931472)  # gap x log 2
    assert reference_digest(learner) == base != moved
    assert largest_logit(learner) > 0.01
    second = learner.work(exchange)
    assert second is not None
    assert second.refreshed
    assert second.metrics["dpo_logits"] != 0.0
    assert learner.policy_digest() == reference_digest(learner) != moved
    assert largest_logit(learner) == 0.0
    third = learner.work(exchange)
    assert third is not None
    assert third.metrics["dpo_logits"] == 0.0
    assert third.loss == pytest.approx(0.25 * 0.6931472)
    learner.close()


class Guarded(MemoryExchange):
    """An exchange whose guardrails request a refresh after step 1."""

    def refresh_due(self, step: int) -> bool:
        return step == 1


def test_the_step_after_a_requested_refresh_reports_it(tmp_path: Path) -> None:
    """Also when the learner had to wait for pairs in between."""
    config = tiny_config().model_copy(update={"guardrails": GuardrailsConfig(action="refresh")})
    learner, exchange = Learner(tiny_model(tmp_path / "model"), config, tmp_path / "run"), Guarded(limit=1)
    first = learner.work(exchange)
    assert first is not None
    assert not first.refreshed
    assert learner.work(exchange) is None
    assert learner.policy_digest() == reference_digest(learner)
    exchange.limit = 3
    second, third = learner.work(exchange), learner.work(exchange)
    assert second is not None
    assert third is not None
    assert (second.refreshed, second.metrics["dpo_logits"], third.refreshed) == (True, 0.0, False)
    learner.close()


@pytest.mark.parametrize(("kind", "stage", "place"), CASES)
def test_a_refresh_keeps_the_policy_and_survives_resume(tmp_path: Path, kind: str, stage: int, place: str) -> None:
    learner, exchange = start(tmp_path, kind, stage, place)
    learner.work(exchange)
    before = learner.policy_digest()
    learner.reference.refresh(learner.engine)
    assert learner.policy_digest() == before == reference_digest(learner)
    learner.work(exchange)
    assert reference_digest(learner) == before
    learner.save(exchange)
    moved = learner.policy_digest()
    learner.close()
    again, _ = start(tmp_path, kind, stage, place)
    assert again.resume(exchange)
    assert reference_digest(again) == before
    assert again.policy_digest() == moved != before
    again.close()


def test_the_version_published_with_a_refresh_is_the_reference(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path, "full", 0, "whole", algorithm={"refresh_every": 1})
    learner.resume(exchange)
    learner.work(exchange)
    version, _ = learner.store.load(1)
    assert reference_digest(learner) == version.digest
    learner.close()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"reference": "sharded"}, "reference = 'sharded': needs zero_stage 1, 2 or 3"),
        ({"reference": "host", "train": "lora"}, "reference = 'host': with train = 'lora' the reference is an adapter"),
    ],
)
def test_invalid_placements_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        tiny_config(**settings)


def test_a_host_reference_is_on_the_device_only_during_its_forward_pass(tmp_path: Path) -> None:
    learner, _ = start(tmp_path, "full", 0, "host")
    home = {name: tensor.data_ptr() for name, tensor in learner.reference.parameters.items()}
    with learner.reference.forward_context(learner.engine) as model:
        away = {name: tensor.data_ptr() for name, tensor in module_tensors(model).items()}
        assert not set(home.values()) & set(away.values())
    assert {name: tensor.data_ptr() for name, tensor in module_tensors(model).items()} == home
    learner.close()


@pytest.mark.parametrize(("kind", "stage", "place"), CASES)
def test_a_policy_fraction_makes_the_reference_a_moving_average(
    tmp_path: Path, kind: str, stage: int, place: str
) -> None:
    """reference <- 0.75 reference + 0.25 policy, for every tensor."""
    learner, exchange = start(tmp_path, kind, stage, place)
    learner.work(exchange)
    whole = [*learner.reference.policy.values(), *learner.reference.parameters.values()]
    before = {}
    for name in learner.reference.policy:
        pair = (learner.reference.policy[name], learner.reference.parameters[name])
        with learner.engine.gathered([pair[0]]):
            policy = pair[0].detach().clone()
        with learner.engine.gathered([pair[1]]):
            before[name] = torch.lerp(pair[1].detach().cpu(), policy.cpu(), 0.25)
    assert whole
    learner.reference.refresh(learner.engine, 0.25)
    for name, expected in before.items():
        with learner.engine.gathered([learner.reference.parameters[name]]):
            torch.testing.assert_close(learner.reference.parameters[name].detach().cpu(), expected)
    learner.close()
