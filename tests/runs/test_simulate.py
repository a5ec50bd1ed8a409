"""Simulated runs: the same loop, ledger and pushes without a model, and the throughput that they report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from actors.prompts.source import open_prompts
from actors.simulated import SimulatedSampler
from common.config import RunConfig, load_config
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.weights.store import WeightStore
from deploy.cli.main import main
from deploy.run_dir import throughput
from deploy.run_dir.jsonl import latest_by_step, read_json_lines
from deploy.runtime import serial
from learner.simulated import USES, SimulatedLearner
from rewarders.simulated import SimulatedRewarder
from tests.support import toy


def config(root: Path, **flags: Any) -> RunConfig:
    """No delays, small data, two pairs per step."""
    values = {"root": root / "runs", "name": "simulated", "simulate": True, "steps": 6, "sampler.candidates": 2}
    values |= {f"simulation.{role}_seconds": 0 for role in ("sample", "score", "step", "load")}
    values |= {"learner.batch_size": 2, "learner.checkpoint_every": 2, "simulation.weights_bytes": 1000}
    return load_config(None, {name: str(value) for name, value in (values | flags).items()})


def ledger(made: RunConfig) -> LocalExchange:
    return LocalExchange(made.folder, made, open_prompts(made.prompts, made.seed))


def uses_in_ledger(exchange: LocalExchange) -> dict[int, int]:
    """Ordinal -> uses, without those that have none."""
    rows = exchange._ledger.all("SELECT ordinal, times_trained FROM groups WHERE times_trained > 0")
    return {row["ordinal"]: row["times_trained"] for row in rows}


def uses_in_weights(made: RunConfig, version: int) -> dict[int, int]:
    """Ordinal -> number of updates of the weights with it."""
    counters = WeightStore(made.folder / "weights").load(version)[1][USES].tolist()
    return {ordinal: uses for ordinal, uses in enumerate(counters) if uses}


def test_weights_and_ledger_count_the_same_uses(tmp_path: Path) -> None:
    made = config(tmp_path, **{"exchange.max_times_trained": 2})
    outcome = serial.run(made)
    assert outcome.result is not None
    exchange = ledger(made)
    exchange.check()
    assert sum(uses_in_ledger(exchange).values()) == 12
    assert uses_in_weights(made, outcome.result["version"]) == uses_in_ledger(exchange)
    exchange.close()


@pytest.mark.parametrize("calls", [3, 20, 45])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path: Path, calls: int) -> None:
    whole, cut = config(tmp_path / "whole"), config(tmp_path / "cut")
    assert serial.run(cut, stop=toy.after(calls, lambda: True)).result is None
    first, second = serial.run(whole).result, serial.run(cut).result
    assert first is not None
    assert second is not None
    assert first["weights_digest"] == second["weights_digest"]


def test_every_start_is_in_the_log(tmp_path: Path) -> None:
    made = config(tmp_path, **{"algorithm.refresh_every": 5, "simulation.failure_rate": 0.3, "logs.level": "debug"})
    assert serial.run(made, stop=toy.after(45, lambda: True)).result is None
    assert serial.run(config(tmp_path, **{"algorithm.refresh_every": 5, "simulation.failure_rate": 0.3})).finished
    (file,) = (made.folder / "logs").iterdir()
    first, second = file.read_text().split("serial ended\n")[:2]
    assert "DEBUG serial rewarders.loop: 4 clips scored\n" in first
    assert re.search(r"DEBUG serial actors.loop: group \d+: \(.*\) sampled under version 0\n", first)
    assert "DEBUG" not in second
    step = re.search(r"INFO serial deploy.runtime.run_loop: interrupted after step (\d+) of 6\n", first)
    assert step is not None
    assert "INFO serial deploy.logs.process: started: serial, host " in second.splitlines()[0]
    assert f"resumed from the checkpoint of step {step[1]}; later uses of pairs are rolled back\n" in second
    assert "step 5: reference refreshed with share 1 of the policy (algorithm)\n" in second
    assert re.search(r"step 6: version \d published\n", second)
    assert "deploy.runtime.run_loop: trained: step 6, version " in second
    assert re.search(r"WARNING serial actors.loop: group \d+ failed: ", first + second)


def test_logs_that_cannot_be_written_do_not_end_a_run(tmp_path: Path) -> None:
    made = config(tmp_path)
    made.folder.mkdir(parents=True)
    (made.folder / "logs").write_text("no folder")
    assert serial.run(made).finished


def test_simulated_failures_are_handled_like_real_ones(tmp_path: Path) -> None:
    made = config(tmp_path, **{"simulation.failure_rate": 0.3, "steps": 10})
    result = serial.run(made).result
    assert result is not None
    exchange = ledger(made)
    exchange.check()
    reasons = " ".join(exchange.failures().values())
    assert "nan score" in reasons
    assert exchange.wasted()["nan"] >= 2
    assert exchange.counts()[State.TRAINED] == 20
    assert result["throughput"]["lost"]["failed"] == len(exchange.failures())
    exchange.close()


def test_blobs_and_weights_have_the_configured_sizes(tmp_path: Path) -> None:
    made = config(tmp_path, **{"simulation.latents_bytes": 4000, "simulation.clip_bytes": 300})
    sampler, exchange = SimulatedSampler(made), ledger(made)
    assert sampler.work(exchange)
    rewarder = SimulatedRewarder(made)
    (task, _) = exchange.lease_candidates("rewarder-0", 2)
    assert len(task.clip) == 300
    exchange.release("rewarder-0")
    assert rewarder.work(exchange)
    assert sampler.work(exchange)
    assert rewarder.work(exchange)
    batch = exchange.lease_batch("learner-0", 1, 2)
    assert {len(latents.data) for group in batch for latents in group.latents} == {4000}
    exchange.close()


def test_a_simulated_learner_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    made = config(tmp_path, steps=5)
    serial.run(made)
    again = SimulatedLearner(made, made.folder)
    exchange = ledger(made)
    assert again.resume(exchange)
    assert again.step == 5
    assert again._uses.sum().item() == 10
    exchange.close()


def test_the_throughput_is_printed_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(tmp_path, **{"simulation.sample_seconds": 0.05})
    words = [f"--{name}={value}" for name, value in _flags(made).items()]
    assert main(["run", *words]) == 0
    first = capsys.readouterr().out
    assert "6 steps and 24 clips in" in first
    assert "the sampler is the bottleneck" in first
    assert "lag: mean 0.83, maximum 1 pushes" in first  # the first step's pairs are of version 0, at lag 0
    assert main(["run", *words]) == 0  # a finished run prints its result
    assert "already finished" in (again := capsys.readouterr().out)
    assert first.splitlines()[-4:] == again.splitlines()[-4:]
    assert latest_by_step(read_json_lines(made.folder / "metrics.jsonl"))[0]["lag_max"] == 0


def _flags(made: RunConfig) -> dict[str, Any]:
    keys = ("root", "name", "simulate", "steps", "sampler.candidates", "learner.batch_size")
    flags: dict[str, Any] = {"mode": "serial"}
    for key in (*keys, "learner.checkpoint_every", *(f"simulation.{r}_seconds" for r in ("sample", "score", "step"))):
        value: Any = made
        for part in key.split("."):
            value = getattr(value, part)
        flags[key] = value
    return flags


def test_commands_that_need_clips_refuse_a_simulated_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(tmp_path, steps=1)
    serial.run(made)
    for command in ("evaluate", "report", "sample"):
        assert main([command, str(made.folder)]) == 2
        assert "a simulated run has no clips" in capsys.readouterr().err


def test_a_long_run_reports_the_throughput_of_its_end(tmp_path: Path) -> None:
    made = config(tmp_path, steps=400, timeline_bytes=100_000)
    result = serial.run(made).result
    assert result is not None
    pace, kept = result["throughput"], len(read_json_lines(made.folder / "timeline.jsonl"))
    assert kept < 1000  # of some 2000 units of work
    assert 150 < pace["steps"] < 350
    assert pace["clips"] == pytest.approx(2 * 2 * pace["steps"], abs=8)
    assert 0 < sum(role["busy"] for role in pace["roles"].values()) <= 1


def test_busy_shares_by_hand() -> None:
    pace = {
        "seconds": 10.0,
        "steps": 5,
        "clips": 20,
        "lost": {"tied": 1},
        "wasted": {"death": 3},
        "lag_mean": 0.5,
        "lag_max": 1,
        "roles": {
            "sampler": {"workers": 2, "busy": 0.25},
            "rewarder": {"workers": 1, "busy": 0.05},
            "learner": {"workers": 1, "busy": 0.9},
        },
    }
    assert throughput.lines(pace) == [
        "5 steps and 20 clips in 10.0 s: 0.50 steps/s, 2.00 clips/s",
        "busy: sampler 25% of 2, rewarder 5% of 1, learner 90% of 1; the learner is the bottleneck",
        "lag: mean 0.50, maximum 1 pushes",
        "groups lost: 1 tied; candidates wasted: 3 by death",
    ]
