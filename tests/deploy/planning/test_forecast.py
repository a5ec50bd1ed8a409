"""The forecast of a plan, and the best split of N GPUs, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.roles import ROLES
from deploy.planning import split
from deploy.planning.forecast import Cluster, forecast, lines, pipeline_of
from deploy.planning.memory import GPUS
from deploy.planning.model_sizes import family_sizes
from deploy.planning.plan import Plan, draft

CONSTANT = Cluster(score_seconds=3.0, gigabits=100.0, tail=0.0)
FULL: dict[str, Any] = {
    "mode": "cluster", "steps": 1000, "model.device": "cuda:0", "model.dtype": "bfloat16", "model.frames": 49,
    "model.height": 480, "model.width": 720, "sampler.steps": 50, "sampler.micro_batch": 1, "sampler.candidates": 4,
    "learner.batch_size": 8, "learner.micro_batch": 1, "learner.zero_stage": 2, "learner.steps_per_push": 10,
    "learner.gradient_checkpointing": "selective", "cluster.sampler.count": 32, "cluster.sampler.gpus": 1,
    "cluster.learner.count": 8, "cluster.learner.gpus": 1, "cluster.rewarder.gpus": 0.5, "guardrails.prompts": 8,
    "guardrails.every_pushes": 5, "evaluation.prompts": 64,
}  # fmt: skip


def made(**changes: Any) -> Plan:
    config = load_config(None, FULL | {name.replace("__", "."): value for name, value in changes.items()})
    gpus = {role: GPUS["A800-80GB"] for role in ROLES}
    return draft(config, family_sizes("5b-i2v"), gpus, 0.4)


def test_a_run_that_its_samplers_bound() -> None:
    plan = made()
    found, clip = forecast(plan, CONSTANT), plan.pace.clip  # 100 pushes: a first reading of the guardrails, and 20 more
    per_step = 32 * clip / 32  # 8 groups of 4 on 32 samplers
    assert found.pipeline.bound == pytest.approx(1 / per_step)
    assert found.share == pytest.approx(1.0, abs=0.03)
    assert found.training_hours == pytest.approx(1000 * per_step / 3600, rel=0.03)
    assert found.other_hours == pytest.approx((2 * 64 + 8 * 21) * clip / 32 / 3600)
    assert found.gpus == 32 + 8 + 0.5
    assert found.rewarders_needed == 1  # 32 clips in 269 s, at 3 s a score
    assert found.pipeline.sync == pytest.approx(8 * plan.disk.push * 4 / 100e9)  # four nodes of samplers
    assert found.enough_lag == 1


def test_the_lag_that_keeps_samplers_busy_is_named() -> None:
    """One pair a push and 16 samplers: max_lag 1 allows 8 candidates, so half of the samplers wait."""
    few: dict[str, Any] = {"learner__batch_size": 1, "learner__steps_per_push": 1, "cluster__learner__count": 1}
    plan = made(cluster__sampler__count=16, **few)
    found = forecast(plan, CONSTANT)
    assert found.share < 0.7
    assert found.enough_lag is not None
    enough = forecast(made(cluster__sampler__count=16, exchange__max_lag=found.enough_lag, **few), CONSTANT)
    assert enough.share >= 0.95
    shown = lines(found, CONSTANT, plan.config)
    assert any("for exchange.max_lag" in line for line in shown)
    assert any(f"exchange.max_lag = {found.enough_lag} would bring it to 95% or more" in line for line in shown)


def test_serial_runs_have_no_forecast() -> None:
    with pytest.raises(ValueError, match="only a cluster run"):
        forecast(made(mode="serial"), CONSTANT)


def splits(count: int, **changes: Any) -> list[split.Split]:
    gpus = {role: GPUS["A800-80GB"] for role in ROLES}
    return split.best_splits(made(**changes).config, family_sizes("5b-i2v"), gpus, 0.4, count, CONSTANT)


def test_the_best_split_uses_all_gpus_and_fits() -> None:
    found = splits(64)
    assert [one.forecast.pace.rate for one in found] == sorted((one.forecast.pace.rate for one in found), reverse=True)
    for one in found:
        used = one.forecast.pipeline
        ranks = one.keys.get("cluster.learner.count", 8)
        assert used.samplers + ranks + 0.5 * used.rewarders <= 64
        assert used.samplers + ranks + 0.5 * used.rewarders > 63
    best = found[0].forecast
    others = [forecast(made(cluster__learner__count=n, cluster__sampler__count=63 - n), CONSTANT) for n in (4, 8)]
    assert best.pace.rate >= max(one.pace.rate for one in others) * 0.99


def test_a_split_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gpus 2: no split of the roles fits"):
        splits(2, learner__gradient_checkpointing="off")


def test_slow_links_take_longer() -> None:
    plan = made()
    fast, slow = (pipeline_of(plan, replace(CONSTANT, gigabits=gigabits)).sync for gigabits in (100.0, 10.0))
    assert slow == pytest.approx(10 * fast)
