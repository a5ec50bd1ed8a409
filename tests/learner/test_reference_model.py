"""The curriculum: the reference becomes the policy, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import GuardConfig
from common.errors import ConfigError
from learner.algorithms import inside
from learner.batch import collate
from learner.learner import Learner
from learner.reference_model import module_tensors
from tests.support.learner.fakes import MemoryExchange, make_pair, tiny_config, tiny_model

CASES = [
    ("full", 0, "whole"),
    ("full", 0, "host"),
    ("lora", 0, "whole"),
    ("full", 3, "whole"),
    ("full", 2, "sharded"),
    ("full", 3, "sharded"),
    ("lora", 3, "whole"),
]


def start(folder: Path, kind: str, stage: int, place: str, **learner: Any) -> tuple[Learner, Any]:
    config = tiny_config(train=kind, zero_stage=stage, reference=place, **learner)
    return Learner(tiny_model(folder / "model"), config, folder / "run"), MemoryExchange()


def inside_now(learner: Learner) -> float:
    pairs = collate([make_pair(100), make_pair(101)])
    return inside(learner.errors(pairs, pairs.ordinals, 1), 5000.0).abs().max().item()


@pytest.mark.parametrize(("kind", "stage", "place"), CASES)
def test_refreshing_every_second_step(tmp_path: Path, kind: str, stage: int, place: str) -> None:
    learner, exchange = start(tmp_path, kind, stage, place, refresh_every=2)
    base = learner.reference_digest()
    assert learner.policy_digest() == base
    first = learner.work(exchange)
    moved = learner.policy_digest()
    assert first is not None
    assert not first.refreshed
    assert first.inside == 0.0
    assert first.loss == pytest.approx(0.25 * 0.6931472)  # gap x log 2
    assert learner.reference_digest() == base != moved
    assert inside_now(learner) > 0.01
    second = learner.work(exchange)
    assert second is not None
    assert second.refreshed
    assert second.inside != 0.0
    assert learner.policy_digest() == learner.reference_digest() != moved
    assert inside_now(learner) == 0.0
    third = learner.work(exchange)
    assert third is not None
    assert third.inside == 0.0
    assert third.loss == pytest.approx(0.25 * 0.6931472)
    learner.close()


class Guarded(MemoryExchange):
    """Its guardrails ask for a refresh after step 1."""

    def refresh_due(self, step: int) -> bool:
        return step == 1


def test_the_step_after_a_refresh_that_was_asked_for_tells_of_it(tmp_path: Path) -> None:
    """Also when the learner had to wait for pairs in between."""
    config = tiny_config().model_copy(update={"guard": GuardConfig(action="refresh")})
    learner, exchange = Learner(tiny_model(tmp_path / "model"), config, tmp_path / "run"), Guarded(limit=1)
    first = learner.work(exchange)
    assert first is not None
    assert not first.refreshed
    assert learner.work(exchange) is None
    assert learner.policy_digest() == learner.reference_digest()
    exchange.limit = 3
    second, third = learner.work(exchange), learner.work(exchange)
    assert second is not None
    assert third is not None
    assert (second.refreshed, second.inside, third.refreshed) == (True, 0.0, False)
    learner.close()


@pytest.mark.parametrize(("kind", "stage", "place"), CASES)
def test_a_refresh_leaves_the_policy_alone_and_survives_resume(
    tmp_path: Path, kind: str, stage: int, place: str
) -> None:
    learner, exchange = start(tmp_path, kind, stage, place)
    learner.work(exchange)
    before = learner.policy_digest()
    learner.reference.refresh(learner.engine)
    assert learner.policy_digest() == before == learner.reference_digest()
    learner.work(exchange)
    assert learner.reference_digest() == before
    learner.save(exchange)
    moved = learner.policy_digest()
    learner.close()
    again, _ = start(tmp_path, kind, stage, place)
    assert again.resume(exchange)
    assert again.reference_digest() == before
    assert again.policy_digest() == moved != before
    again.close()


def test_the_version_published_with_a_refresh_is_the_reference(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path, "full", 0, "whole", refresh_every=1)
    learner.resume(exchange)
    learner.work(exchange)
    version, _ = learner.store.load(1)
    assert learner.reference_digest() == version.digest
    learner.close()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"reference": "sharded"}, "reference = 'sharded': needs zero_stage 1, 2 or 3"),
        ({"reference": "host", "train": "lora"}, "reference = 'host': with train = 'lora' the reference is an adapter"),
    ],
)
def test_places_that_cannot_be(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        tiny_config(**settings)


def test_a_reference_in_host_memory_visits_the_device_for_its_pass_alone(tmp_path: Path) -> None:
    learner, _ = start(tmp_path, "full", 0, "host")
    home = {name: tensor.data_ptr() for name, tensor in learner.reference.parameters.items()}
    with learner.reference.forward_context(learner.engine) as model:
        away = {name: tensor.data_ptr() for name, tensor in module_tensors(model).items()}
        assert not set(home.values()) & set(away.values())
    assert {name: tensor.data_ptr() for name, tensor in module_tensors(model).items()} == home
    learner.close()
