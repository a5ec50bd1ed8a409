"""The metrics of a run: unit tests, and runs that are scraped while they run."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config import RunConfig, algorithm_class
from common.exchange.api import FailureKind
from common.messages import Score, Span, TrainingFinished
from deploy.observability.definitions import HISTOGRAM, OF_ALGORITHMS, TABLE, TARGET_LABELS, algorithm_metric
from deploy.observability.exporter import GaugeSample
from deploy.observability.targets import Targets
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import serial
from deploy.runtime.run_metrics import MeteredExchange, RunMetrics, of_readings, of_step
from docs import generate
from tests.deploy.guardrails.test_monitor import WATCHED
from tests.deploy.guardrails.test_rules import START, reading, side
from tests.deploy.observability.test_exporter import Samples, scrape
from tests.deploy.runtime.test_serial import fresh, model
from tests.runs.test_bare import run as run_without
from tests.runs.test_simulate import config
from tests.support import toy
from tests.support.exchange import fakes
from tests.support.steps import STATS

__all__ = ["model"]  # the fixture

SECONDS = 60.0


def now(run_metrics: RunMetrics) -> Samples:
    """The samples of the registry, without a server."""
    samples = [sample for family in run_metrics.process_metrics.registry.collect() for sample in family.samples]
    return {(one.name, *(one.labels[label] for label in sorted(one.labels))): one.value for one in samples}


def names(samples: Samples) -> set[str]:
    """The names of the metrics that have samples."""
    parts = {name: name.rpartition("_")[0] for name, *_ in samples}
    return {
        stem if TABLE.get(stem) is not None and TABLE[stem].kind == HISTOGRAM else name for name, stem in parts.items()
    }


def metrics_of_other_algorithms(config: RunConfig) -> set[str]:
    """The metrics that built-in algorithms declare, but not that of the run."""
    own = {algorithm_metric(spec).name for spec in algorithm_class(config.algorithm.name).metrics}
    return {metric.name for metric in OF_ALGORITHMS} - own


# Unit tests.


def test_a_step_as_gauges() -> None:
    assert dict((value.name, value.value) for value in of_step(STATS)) == {
        "douga_loss": 0.5,
        "douga_algorithm_dpo_logits": 0.1,
        "douga_algorithm_reward_margin": 0.2,
        "douga_algorithm_gap": 0.05,
        "douga_algorithm_chosen_error": -0.01,
        "douga_algorithm_rejected_error": 0.02,
        "douga_algorithm_accuracy": 0.75,
        "douga_grad_norm": 1.5,
        "douga_learning_rate": 1e-5,
        "douga_policy_lag_mean_pushes": 0.5,
        "douga_policy_lag_max_pushes": 1.0,
        "douga_reward": 0.6,
    }


def test_a_reading_separates_scorer_drift_from_policy_changes() -> None:
    """The policy is 5.5 points above the base, whose own clips score 1 point more than at the start."""
    last = reading(7, base=side(reward=(51.0, 53.0, 55.0, 57.0)), reward=(55.0, 58.0, 59.0, 62.0))
    found = {(value.name, *sorted(value.labels.values())): value.value for value in of_readings([START, last])}
    assert found["douga_probe_step",] == 7
    assert found["douga_probe_prompts",] == 4
    assert found["douga_probe_reward", "policy", "reward"] == 58.5
    assert found["douga_probe_reward", "base", "reward"] == 54.0
    assert found["douga_probe_reward", "reward", "start"] == 53.0
    assert found["douga_probe_reward", "policy", "smoothness"] == 58.5
    spread = math.sqrt((9 + 1 + 1 + 9) / 3)
    assert found["douga_probe_reward_stddev", "base", "reward"] == pytest.approx(spread)
    assert found["douga_probe_reward_stddev", "reward", "start"] == pytest.approx(spread)
    assert found["douga_probe_judge", "motion", "policy"] == 73.0
    assert found["douga_probe_motion_ratio",] == 1.0
    assert of_readings([]) == []


@contextmanager
def metered(folder: Path, **flags: str) -> Iterator[tuple[RunMetrics, MeteredExchange]]:
    """`RunMetrics` and an exchange that reports to it. N = 2, two pairs per step, no run loop."""
    made = fakes.small(**flags)
    folder.mkdir(exist_ok=True)
    run_metrics = RunMetrics(made, folder)
    exchange = MeteredExchange(folder, made, fakes.source, run_metrics)
    run_metrics.process_metrics.read(lambda: run_metrics._ledger(exchange))
    try:
        now(run_metrics)  # from here on
        yield run_metrics, exchange
    finally:
        exchange.close()


def test_submissions_are_counted(tmp_path: Path) -> None:
    with metered(tmp_path) as (run_metrics, exchange):
        exchange.announce(fakes.weight_version(0, 0, 0))
        exchange.enqueue(fakes.heldout(1))
        fakes.sample(exchange)
        lease = fakes.sample(exchange)
        assert lease is not None
        again = exchange.submit_candidate(lease, fakes.candidate(lease, 0))
        assert again.reason == "duplicate"
        fakes.score_all(exchange, {"0-0-v0": 80.0, "0-1-v0": 30.0})
        found = now(run_metrics)
        assert found["douga_candidates_total", "train"] == 2
        assert found["douga_candidates_total", "eval"] == 1
        assert found["douga_score_batch_clips_sum",] == 3
        assert found["douga_reward_score_count", "motion"] == 2  # a held-out clip is no training candidate
        assert found["douga_reward_score_sum", "motion"] == 110
        assert found["douga_queue_items", "ready"] == 1
        assert found["douga_queue_admitted_total",] == 1
        assert found["douga_pushes_total",] == 1
        assert found["douga_policy_version", "learner"] == 0
        assert found["douga_blobs_bytes",] == exchange.bytes_on_disk() > 0
        assert found["douga_blobs_limit_bytes",] == 20_000_000_000


def test_nonfinite_values_are_counted_by_role(tmp_path: Path) -> None:
    with metered(tmp_path) as (run_metrics, exchange):
        fakes.sample(exchange)
        (task, _) = exchange.lease_candidates("rewarder-0", 2)
        exchange.submit_scores("rewarder-0", [Score(task.candidate_id, "heads-1", fakes.values(math.nan))])
        for reason, kind in (("latents are NaN", FailureKind.NON_FINITE), ("no such image", FailureKind.OTHER)):
            lease = exchange.lease_sampling("sampler-0", 0)
            assert lease is not None
            exchange.fail_sampling(lease, reason, kind)
        run_metrics.not_finite("learner-0")
        run_metrics.not_finite("nobody")
        found = now(run_metrics)
        assert [found["douga_nonfinite_total", role] for role in ("sampler", "rewarder", "learner")] == [1, 1, 1]
        assert found["douga_queue_dropped_total", "failed"] == 1
        assert found["douga_candidates_wasted_total", "nan"] == 2


def test_a_rollback_does_not_decrease_a_counter(tmp_path: Path) -> None:
    with metered(tmp_path, exchange__max_lag="0") as (run_metrics, exchange):
        exchange.announce(fakes.weight_version(0, 0, 0))
        fakes.make_pairs(exchange, 2)
        exchange.announce(fakes.weight_version(1, 1, 1))
        assert exchange.lease_batch("learner-0", 1, 2) == []  # both are too old: they expire
        assert now(run_metrics)["douga_queue_dropped_total", "expired"] == 2
        exchange.rollback(0)
        found = now(run_metrics)
        assert found["douga_queue_items", "expired"] == 0
        assert found["douga_queue_dropped_total", "expired"] == 2
        assert found["douga_queue_admitted_total",] == 2


def test_journal_records_become_metrics(tmp_path: Path) -> None:
    run_metrics = RunMetrics(config(tmp_path), tmp_path)
    run_metrics.step(STATS)
    run_metrics.step(replace(STATS, step=4, refreshed=False, seconds=0.5))
    for kind, seconds in (("sampling", 4.0), ("sampling", 2.0), ("loading", 0.5), ("scoring", 1.0), ("napping", 9.0)):
        run_metrics.span(Span("sampler-0", kind, 1000.0, seconds))
    run_metrics.died("sampler-1")
    found = now(run_metrics)
    assert found["douga_steps_total",] == 2
    assert found["douga_reference_refreshes_total",] == 1
    assert found["douga_step_seconds_sum",] == 3.0
    assert found["douga_sample_seconds_count",] == 2
    assert found["douga_sample_seconds_bucket", "3.0"] == 1
    assert found["douga_score_seconds_sum",] == 1.0
    assert found["douga_busy_seconds_total", "sampler"] == 6.5
    assert found["douga_busy_seconds_total", "rewarder"] == 1.0
    assert found["douga_weight_push_seconds_sum", "load"] == 0.5
    assert found["douga_worker_crashes_total", "sampler"] == 1


def test_the_journal_lists_running_workers(tmp_path: Path) -> None:
    made = config(tmp_path, mode="cluster", **{"cluster.sampler.count": 3})
    run_metrics = RunMetrics(made, tmp_path)
    run_metrics.process_metrics.read(run_metrics._workers)
    for number, worker in enumerate(("learner-0", "learner-1", "sampler-0", "sampler-7")):
        run_metrics.exporting(worker, f"127.0.0.1:{9000 + number}")
    found = now(run_metrics)
    assert (found["douga_workers_up", "sampler"], found["douga_workers_configured", "sampler"]) == (2, 3)
    assert (found["douga_workers_up", "rewarder"], found["douga_workers_configured", "rewarder"]) == (0, 1)
    run_metrics.trained(TrainingFinished(6, 6, "0" * 32))
    assert now(run_metrics)["douga_workers_up", "learner"] == 0
    with pytest.raises(ValueError, match="'hub': not the name of a worker"):
        run_metrics.exporting("hub", "127.0.0.1:9999")


def test_the_expected_push_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step every 4 s, a push every 3 steps."""
    made = config(tmp_path, **{"learner.steps_per_push": 3, "learner.checkpoint_every": 3})
    run_metrics, second = RunMetrics(made, tmp_path), iter(range(100, 200, 4))
    monkeypatch.setattr("time.monotonic", lambda: float(next(second)))
    found: list[list[GaugeSample]] = []
    for _ in range(3):
        run_metrics.step(STATS)
        found.append([one for one in run_metrics._pace() if one.name == "douga_push_interval_expected_seconds"])
    assert found[0] == []
    assert found[2] == [GaugeSample("douga_push_interval_expected_seconds", 12.0)]


def test_alarms_are_counted(tmp_path: Path) -> None:
    run_metrics = RunMetrics(config(tmp_path), tmp_path)
    run_metrics.reading([START, replace(reading(5), alarms=("motion", "judge identity"))])
    run_metrics.reading([START, replace(reading(6), alarms=("motion",))])
    found = now(run_metrics)
    assert found["douga_guard_alarms_total", "motion"] == 2
    assert found["douga_guard_alarms_total", "judge identity"] == 1


# Runs that are scraped while they run.


def targets(made: RunConfig) -> list[dict]:
    return json.loads((made.folder / "prometheus" / "targets.json").read_text())


def watching(made: RunConfig, seen: list[Samples]) -> Callable[[], bool]:
    """A stop predicate that never stops the run, but scrapes it between any two units of work."""

    def stop() -> bool:
        (target,) = targets(made)
        assert target["labels"].keys() == TARGET_LABELS.keys()
        seen.append(scrape(target["targets"][0]))
        return False

    return stop


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[Samples]]:
    """A serial run of simulated work."""
    made = config(tmp_path_factory.mktemp("simulated"), **{"algorithm.refresh_every": 2, "metrics.tensorboard": "true"})
    seen: list[Samples] = []
    assert serial.run(made, stop=watching(made, seen)).finished
    return made, seen


@pytest.fixture(scope="module")
def watched(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[Samples]]:
    """A serial run of a tiny model, with guardrails."""
    made = toy.config(fresh(tmp_path_factory.mktemp("watched"), model), steps=1, **WATCHED)
    seen: list[Samples] = []
    assert serial.run(made, toy.rewards(), stop=watching(made, seen)).finished
    return made, seen


Scraped = tuple[RunConfig, list[Samples]]


def test_a_serial_run_can_be_scraped(simulated: Scraped) -> None:
    made, seen = simulated
    first, last = seen[0], seen[-1]
    assert (first["douga_step",], first["douga_steps_configured",]) == (0, 6)
    assert ("douga_loss",) not in first  # no value yet
    assert 0 < last["douga_step",] < 6
    assert last["douga_steps_total",] == last["douga_step",]
    assert last["douga_step_seconds_count",] == last["douga_steps_total",]
    assert last["douga_reference_refreshes_total",] == last["douga_step",] // 2
    assert last["douga_policy_version", "sampler"] == last["douga_policy_version", "learner"] == last["douga_step",]
    assert last["douga_candidates_total", "train"] == 2 * last["douga_queue_admitted_total",]
    states = [value for (name, *_), value in last.items() if name == "douga_queue_items"]
    assert sum(states) == last["douga_queue_admitted_total",]
    assert last["douga_weight_push_seconds_count", "write"] == last["douga_pushes_total",]
    assert last["douga_weight_push_seconds_count", "load"] >= last["douga_step",]
    assert last["douga_phase", "training"] == 1
    assert last["douga_workers_up", "learner"] == 1
    steps = read_json_lines(made.folder / "metrics.jsonl")
    assert last["douga_reward",] == pytest.approx(steps[int(last["douga_step",]) - 1]["reward"])


def test_after_the_run_there_are_no_targets(simulated: Scraped) -> None:
    assert targets(simulated[0]) == []


def test_readings_of_the_guardrails_are_exported(watched: Scraped) -> None:
    seen = watched[1]
    assert seen[0]["douga_phase", "evaluating base"] == 0  # the first units of work are the base model's probes
    assert any(one["douga_phase", "evaluating base"] for one in seen)
    assert seen[-1]["douga_phase", "evaluating aligned"] == 1
    last = seen[-1]
    assert last["douga_probe_step",] == 1
    assert last["douga_probe_prompts",] == 2
    assert last["douga_probe_reward", "reward", "base"] == last["douga_probe_reward", "reward", "start"]
    assert 0 <= last["douga_probe_reward", "reward", "policy"] <= 100
    assert last["douga_probe_reward_stddev", "character", "base"] > 0
    assert 0 <= last["douga_probe_judge", "identity", "policy"] <= 100
    assert last["douga_probe_motion_ratio",] > 0
    assert last["douga_candidates_total", "probe"] > 0


def test_code_and_table_are_equal(simulated: Scraped, watched: Scraped) -> None:
    """Two runs export every metric of the table, except those of a GPU (`test_exporter.py`), and no others."""
    exported = {name for _, seen in (simulated, watched) for one in seen for name in names(one)}
    ours = {name for name in exported if not name.startswith("process_")}
    assert ours - set(TABLE) == set()
    missing = set(TABLE) - ours - metrics_of_other_algorithms(simulated[0])
    assert {name for name in missing if not name.startswith("douga_gpu_")} == set()


def test_documentation_and_table_are_equal() -> None:
    page = generate.metrics_page()
    table = page.partition("## All metrics")[2].splitlines()
    rows = [line.split("|")[1].strip() for line in table if line.startswith("| `douga_")]
    assert rows == [f"`{name}`" for name in TABLE]


def test_a_resumed_run_exports_its_state_at_once(tmp_path: Path) -> None:
    made = config(tmp_path)
    asked: list[bool] = []

    def after_four() -> bool:
        asked.extend([True] * (len(read_json_lines(made.folder / "metrics.jsonl")) >= 4))
        return bool(asked)

    assert not serial.run(made, stop=after_four).finished
    assert targets(made) == []
    Targets(made.folder, made.name).put("serial", "127.0.0.1:1")  # as if it had been killed
    seen: list[Samples] = []
    assert serial.run(made, stop=watching(made, seen)).finished
    first = seen[0]
    assert first["douga_step",] == 4
    assert first["douga_queue_items", "trained"] == 8
    assert first["douga_queue_admitted_total",] == first["douga_steps_total",] == 0


def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    made = config(tmp_path, steps=1, **{"metrics.enabled": "false"})
    seen: list[list[dict]] = []
    serial.run(made, stop=lambda: bool(seen.append(targets(made))))
    assert seen
    assert not any(seen)


def test_a_port_can_be_fixed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        made = config(tmp_path, steps=1, **{"metrics.port": first})
        at: set[int] = set()
        serial.run(made, stop=lambda: bool(at.update(int(one["targets"][0].split(":")[1]) for one in targets(made))))
    assert len(at) == 1
    assert first < at.pop() < first + 100


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_own_linter_finds_nothing(simulated: Scraped, tmp_path: Path) -> None:
    made = config(tmp_path, steps=2)
    texts: list[bytes] = []

    def stop() -> bool:
        connection = HTTPConnection(targets(made)[0]["targets"][0], timeout=SECONDS)
        connection.request("GET", "/metrics")
        texts.append(connection.getresponse().read())
        connection.close()
        return False

    serial.run(made, stop=stop)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=texts[-1], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_accepts_the_documented_configuration(tmp_path: Path) -> None:
    block = (generate.DOCS / "metrics.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "prometheus.yml").write_text(block)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# TensorBoard.


def test_tensorboard_shows_the_steps(simulated: Scraped) -> None:
    made = simulated[0]
    events = EventAccumulator(str(made.folder / "tensorboard"))
    events.Reload()
    steps = read_json_lines(made.folder / "metrics.jsonl")
    shown = events.Scalars("douga_reward")
    assert [one.step for one in shown] == [1, 2, 3, 4, 5, 6]
    assert [one.value for one in shown] == pytest.approx([record["reward"] for record in steps])
    assert set(events.Tags()["scalars"]) == {value.name for value in of_step(STATS)}


def test_tensorboard_has_readings_and_drops_repeated_steps(tmp_path: Path) -> None:
    made = config(tmp_path, **{"metrics.tensorboard": "true"})
    for steps, loss in (((1, 2, 3, 4), 0.5), ((3, 4, 5), 0.25)):  # the second start resumes from step 2
        run_metrics = RunMetrics(made, tmp_path)
        for step in steps:
            run_metrics.step(replace(STATS, step=step, loss=loss))
        run_metrics.reading([START, reading(steps[-1])])
        run_metrics._close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {one.step: one.value for one in events.Scalars("douga_loss")}
    assert shown == {1: 0.5, 2: 0.5, 3: 0.25, 4: 0.25, 5: 0.25}
    assert events.Scalars("douga_probe_reward/reward/policy")[-1].value == 53.0


def test_a_missing_tensorboard_is_an_error(tmp_path: Path) -> None:
    ended = run_without(tmp_path, "tensorboard", "--mode", "serial", "--simulate", "--metrics.tensorboard")
    assert ended.returncode == 2
    assert ended.stderr == (
        "douga: metrics.tensorboard: needs the package tensorboard: pip install 'douga[tensorboard]'\n"
    )
    assert not list(tmp_path.iterdir())
