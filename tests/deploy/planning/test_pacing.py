"""The event model: equal to a run of the real exchange in virtual time, and what it says of some pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.simulation import Simulation
from deploy.planning.pacing import Pipeline, log_normal, simulate
from tests.support.exchange.fakes import small
from tests.support.exchange.virtual import VirtualRun

SECONDS = {"sample_seconds": 1.0, "score_seconds": 0.05, "step_seconds": 0.4, "load_seconds": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "one pair a step": {"cluster__sampler__count": 7, "learner__batch_size": 1},
    "max_lag 0": {"cluster__sampler__count": 4, "exchange__max_lag": 0},
    "max_lag 2": {"cluster__sampler__count": 6, "exchange__max_lag": 2},
    "a push every third step": {
        "cluster__sampler__count": 5,
        "learner__steps_per_push": 3,
        "learner__checkpoint_every": 3,
    },
    "micro-batches": {"cluster__sampler__count": 5, "sampler__micro_batch": 2},
    "constant times": {"cluster__sampler__count": 8, "exchange__max_lag": 2, "simulation__tail": 0.0},
    "few rewarders": {"cluster__sampler__count": 9, "exchange__max_lag": 4, "simulation__score_seconds": 0.3},
    "a short pipeline": {"cluster__sampler__count": 9, "exchange__max_lag": 4, "exchange__pipeline_depth": 2},
    "slow weights": {"cluster__sampler__count": 6, "sync": 2.5},
}


def pipeline(config: RunConfig, sync: float = 0.0) -> Pipeline:
    how = config.simulation
    return Pipeline(
        samplers=config.cluster.sampler.count,
        rewarders=config.cluster.rewarder.count,
        candidates=config.sampler.candidates,
        batch_size=config.learner.batch_size,
        sample=how.sample_seconds,
        score=how.score_seconds,
        step=how.step_seconds,
        steps=config.steps,
        steps_per_push=config.learner.steps_per_push,
        max_lag=config.exchange.max_lag,
        pipeline_depth=config.exchange.pipeline_depth,
        micro_batch=config.sampler.micro_batch,
        score_batch=config.reward.batch,
        load=how.load_seconds,
        sync=sync,
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_equals_the_exchange(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, so every event is at the same time."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    flags = {"sampler__candidates": 4, "sampler__micro_batch": 1, "steps": 20, "reward__batch": 4}
    flags |= {"cluster__rewarder__count": 2, "exchange__lease_seconds": 1e6}
    flags |= {f"simulation__{name}": value for name, value in SECONDS.items()} | SETTINGS[setting]
    sync = flags.pop("sync", 0.0)
    config = small(**flags)
    real = VirtualRun(tmp_path, config, sync)
    seconds = real.run()
    found = simulate(pipeline(config, sync), Simulation(config).seconds)
    assert found.seconds == pytest.approx(seconds, rel=1e-12)
    assert found.expired == real.expired()
    workers = {"sampler": config.cluster.sampler.count, "rewarder": config.cluster.rewarder.count, "learner": 1}
    assert found.busy["learner"] == pytest.approx(real.busy["learner"] / seconds, rel=1e-9)
    assert found.busy["sampler"] <= real.busy["sampler"] / seconds / workers["sampler"] + 1e-9  # some are unfinished


LOG_NORMAL = [(6, 2, 2), (24, 8, 2), (28, 16, 2), (16, 16, 1), (48, 16, 2), (56, 32, 2), (56, 64, 1)]


@pytest.mark.parametrize(("samplers", "pairs", "max_lag"), LOG_NORMAL)
def test_samplers_are_busy_where_the_lag_allows_it(samplers: int, pairs: int, max_lag: int) -> None:
    """Times of tail 0.5. Where four candidates a sampler are allowed: nearly the whole bound, and nothing expires."""
    one = Pipeline(samplers, samplers, 4, pairs, 1.0, 1e-3, 0.1, 220, max_lag=max_lag, pipeline_depth=1000)
    assert 4 * samplers <= (max_lag + 1) * pairs * 4
    found = simulate(one, log_normal(0.5), warm_up=20)
    assert found.rate >= 0.96 * one.bound
    assert found.expired == 0


@pytest.mark.parametrize(("samplers", "pairs", "max_lag"), [(4, 1, 1), (6, 1, 2), (16, 4, 1), (56, 14, 1)])
def test_constant_times_reach_the_bound(samplers: int, pairs: int, max_lag: int) -> None:
    one = Pipeline(samplers, samplers, 4, pairs, 1.0, 1e-3, 0.1, 220, max_lag=max_lag, pipeline_depth=1000)
    assert samplers <= (max_lag + 1) * pairs * 4 / 2
    found = simulate(one, log_normal(0.0), warm_up=20)
    assert found.rate >= 0.98 * one.bound
    assert found.expired == 0


def test_what_samplers_wait_for_is_named() -> None:
    def waits(**more: Any) -> dict[str, float]:
        values: dict[str, Any] = {"sample": 1.0, "score": 1e-3, "step": 0.1, "steps": 40, "pipeline_depth": 99} | more
        return simulate(Pipeline(8, 2, 4, 4, **values), log_normal(0.0)).waits

    assert max((found := waits(step=9.0)), key=lambda why: found[why]) == "max_lag"
    assert max((found := waits(pipeline_depth=1)), key=lambda why: found[why]) == "pipeline_depth"
    assert max((found := waits(sync=3.0)), key=lambda why: found[why]) == "weights"
