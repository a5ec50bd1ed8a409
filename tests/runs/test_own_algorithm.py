"""A custom algorithm: one class, named by its dotted path, with its own selection, loss and metric."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import Field

from common.config.algorithm import AlgorithmConfig
from common.messages import Selection
from deploy.inspect.snapshot import RunReader
from deploy.inspect.web.view import DashboardState
from deploy.results import report
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import serial
from deploy.runtime.run_metrics import RunMetrics
from learner.algorithms.base import Algorithm, LossInputs, LossOutput, MetricSpec
from tests.deploy.runtime.test_serial import fresh, model
from tests.support import toy

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["model"]  # the fixture


class Centred(Algorithm):
    """Every candidate is trained on, weighted by how far its reward lies above the mean of its group."""

    class Config(AlgorithmConfig):
        """``[algorithm] name = "tests.runs.test_own_algorithm:Centred"``."""

        strength: float = Field(default=1.0, gt=0, description="factor of every weight")

    metrics = (MetricSpec("positive_share", "Share of candidates with a weight above 0.", "0 .. 1"),)
    needs_reference = False

    def select(self, rewards: Sequence[float]) -> Selection | None:
        mean = statistics.fmean(rewards)
        weights = tuple(self.config.strength * (reward - mean) for reward in rewards)
        return Selection(tuple(range(len(rewards))), weights) if any(weights) else None

    def loss(self, inputs: LossInputs) -> LossOutput:
        above: Tensor = (inputs.weights > 0).float().mean(1)
        return LossOutput((inputs.weights * inputs.policy).mean(1), {"positive_share": above})


def test_a_custom_algorithm_runs_and_its_metric_is_exported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []
    closed = RunMetrics._close

    def last_scrape(run_metrics: RunMetrics) -> None:
        exported.extend(family.name for family in run_metrics.process_metrics.registry.collect())
        closed(run_metrics)

    monkeypatch.setattr(RunMetrics, "_close", last_scrape)
    name = f"{__name__}:Centred"
    own = {"algorithm.name": name, "algorithm.strength": 2.0, "sampler.candidates": 3}
    config = toy.config(fresh(tmp_path / "run", model), **own)
    outcome = serial.run(config, toy.rewards())
    assert outcome.result is not None
    steps = read_json_lines(config.folder / "metrics.jsonl")
    assert len(steps) == config.steps
    assert all(list(step["metrics"]) == ["positive_share"] for step in steps)
    assert all(0 < step["metrics"]["positive_share"] < 1 for step in steps)
    assert "douga_algorithm_positive_share" in exported
    assert "Positive share" in (config.folder / report.layout.REPORT).read_text()
    shown = DashboardState(RunReader(config.folder)).page_data("")
    assert "Positive share" in [curve["title"] for curve in shown["curves"]["drawn"]]
    assert [one["name"] for one in shown["groups"][0]["kept"]] == ["candidate 0", "candidate 1", "candidate 2"]
    before = [version.name for version in sorted((config.folder / "weights").iterdir())]
    assert len(before) > 1


def test_a_custom_algorithm_is_deterministic(model: Path, tmp_path: Path) -> None:
    name = f"{__name__}:Centred"
    results = [
        serial.run(toy.config(fresh(tmp_path / run, model), **{"algorithm.name": name}), toy.rewards()).result
        for run in ("one", "two")
    ]
    digests = {result["weights_digest"] for result in results if result is not None}
    assert len(digests) == 1
