"""Metrics of the run as a whole: events of its journal and exchange, and the state of its ledger and folder.

```
workers ── step, span, ... ──────> RunJournal ──┐                    ┌─ GET /metrics: gauges read at scrape time
        ── submit, announce ─> MeteredExchange ─┼──> RunMetrics ─────┤
             GuardrailMonitor ── reading ───────┘                    └─ curves: `deploy/observability/scalars.py`
```

A scrape reads the ledger's counts, which are indexed, and the size of its blobs; it reads no rows of groups.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any

from common.config import RunConfig, algorithm_class
from common.exchange.api import LOST, FailureKind, Submitted
from common.exchange.local import LocalExchange
from common.messages import (
    Candidate,
    Prompt,
    Purpose,
    SamplingLease,
    Score,
    Span,
    StepStats,
    TrainingFinished,
    WeightVersion,
)
from common.roles import HUB, LEARNER, PHASES, REWARDER, ROLES, SAMPLER, SERIAL, role_of
from deploy.guardrails.rules import MOTION, SCORER, ClipMeasurement, Reading, judge_rule, motion_share
from deploy.observability.definitions import WASTED, exported_name
from deploy.observability.exporter import GaugeSample, ProcessMetrics, exporting
from deploy.observability.scalars import Scalars
from deploy.observability.targets import Targets
from deploy.runtime.run_loop import RunLoop

DIMENSIONS = 64  # maximum number of exported dimensions: their names come from rewarders
RECENT = 20  # steps over which the expected push interval is averaged
TIMED = {"sampling": "douga_sample_seconds", "scoring": "douga_score_seconds"}  # kind of span -> histogram
ROLE_OF = {"sampling": SAMPLER, "loading": SAMPLER, "scoring": REWARDER, "learning": LEARNER}
SHOWN = {  # field of StepStats -> gauge
    "loss": "douga_loss",
    "grad_norm": "douga_grad_norm",
    "lr": "douga_learning_rate",
    "lag": "douga_policy_lag_mean_pushes",
    "lag_max": "douga_policy_lag_max_pushes",
    "reward": "douga_reward",
}


def of_step(stats: StepStats) -> list[GaugeSample]:
    """Returns the statistics of a step as gauges."""
    shown = [GaugeSample(name, float(getattr(stats, field))) for field, name in SHOWN.items()]
    return shown + [GaugeSample(exported_name(name), value) for name, value in stats.metrics.items()]


def of_readings(readings: Sequence[Reading]) -> list[GaugeSample]:
    """Returns the latest guardrail reading as gauges, [] without a reading."""
    if not readings:
        return []
    start, last = readings[0], readings[-1]
    values = [
        GaugeSample("douga_probe_step", last.step),
        GaugeSample("douga_probe_prompts", len(last.policy)),
        GaugeSample("douga_probe_motion_ratio", motion_share(last)),
    ]
    for model, clips in (("policy", last.policy), ("base", last.base), ("start", start.base)):
        for dimension, points in _by_name(clips, "trained"):
            labels = {"dimension": dimension, "model": model}
            values.append(GaugeSample("douga_probe_reward", statistics.fmean(points), labels))
            if len(points) > 1:
                values.append(GaugeSample("douga_probe_reward_stddev", statistics.stdev(points), labels))
        if model != "start":  # base clips are judged only once, so there is no separate start
            judged = _by_name(clips, "judged")
            values += [
                GaugeSample("douga_probe_judge", statistics.fmean(points), {"dimension": answer, "model": model})
                for answer, points in judged
            ]
    return values


def _by_name(clips: Mapping[int, ClipMeasurement], kind: str) -> list[tuple[str, list[float]]]:
    """Returns (name, values over all clips). Names that some clip lacks are left out."""
    rows: list[dict[str, float]] = [getattr(one, kind) for one in clips.values()]
    return [(name, [row[name] for row in rows]) for name in rows[0] if all(name in row for row in rows)]


class RunMetrics:
    """The metrics of one start of a run. It implements `Journal`. Thread-safe.

    Call `watch` once there is a run loop, then `export`.
    """

    def __init__(self, config: RunConfig, folder: Path, process: str = HUB) -> None:
        self.config, self.folder, self.process = config, folder, process
        self.process_metrics = ProcessMetrics(process, algorithm_class(config.algorithm.name).metrics)
        self.targets = Targets(folder, config.name)
        self._scalars = Scalars(config, folder)
        self._last: StepStats | None = None
        self._pushed: float | None = None  # Unix time
        self._ends: deque[float] = deque(maxlen=RECENT)  # of steps
        self._seen: dict[tuple[str, ...], int] = {}  # the ledger's counts at the last scrape
        self._dimensions: set[str] = set()
        self._lock = Lock()

    def export(self, stack: ExitStack, host: str) -> None:
        """Serves the metrics at `host`, and lists the scrape targets, until `stack` closes."""
        if self.config.metrics.enabled:
            address = stack.enter_context(exporting(self.process_metrics, host, self.config.metrics.port))
            self.targets.put(self.process, address)
        stack.callback(self._close)

    def _close(self) -> None:
        self.targets.clear()
        self._scalars.close()

    # The methods of `Journal`.

    def step(self, stats: StepStats) -> None:
        """See `Journal`."""
        self.process_metrics.add("douga_steps_total")
        self.process_metrics.add("douga_reference_refreshes_total", float(stats.refreshed))
        self.process_metrics.observe("douga_step_seconds", stats.seconds)
        self._ends.append(time.monotonic())
        self._last = stats
        self._scalars.write(of_step(stats), stats.step)

    def span(self, span: Span) -> None:
        """See `Journal`."""
        if span.kind in TIMED:
            self.process_metrics.observe(TIMED[span.kind], span.seconds)
        if span.kind == "loading":
            self.process_metrics.observe("douga_weight_push_seconds", span.seconds, phase="load")
        if span.kind in ROLE_OF:
            self.process_metrics.add("douga_busy_seconds_total", span.seconds, role=ROLE_OF[span.kind])

    def trained(self, trained: TrainingFinished) -> None:
        """See `Journal`. The learner's ranks exit now, so they are no longer scraped."""
        self.targets.remove(self.targets.workers(LEARNER))

    def exporting(self, worker: str, address: str) -> None:
        """See `Journal`."""
        if role_of(worker) not in ROLES:
            raise ValueError(f"{worker!r:.60}: not the name of a worker")
        self.targets.put(worker, address)

    def not_finite(self, worker: str) -> None:
        """See `Journal`."""
        role = role_of(worker)
        if role in ROLES:
            self.process_metrics.add("douga_nonfinite_total", role=role)

    # Other events.

    def died(self, worker: str) -> None:
        """Counts a crash of `worker`."""
        self.process_metrics.add("douga_worker_crashes_total", role=role_of(worker))

    def announced(self) -> None:
        """Counts a published version."""
        self.process_metrics.add("douga_pushes_total")
        self._pushed = time.time()

    def scored(self, values: Mapping[str, float]) -> None:
        """Records the scores of a training candidate, dimension -> points."""
        for dimension, value in values.items():
            if dimension in self._dimensions or len(self._dimensions) < DIMENSIONS:
                self._dimensions.add(dimension)
                self.process_metrics.observe("douga_reward_score", value, dimension=dimension)

    def reading(self, readings: Sequence[Reading]) -> None:
        """Records the last of the guardrail readings."""
        for rule in readings[-1].alarms:
            self.process_metrics.add("douga_guard_alarms_total", rule=rule)
        if readings[-1].step:  # later readings include that of the base model
            self._scalars.write(of_readings(readings), readings[-1].step)

    # State, read at every scrape.

    def watch(self, run_loop: RunLoop, error_replies: Callable[[], Mapping[str, int]] = dict) -> None:
        """Exports the state of `run_loop`. `error_replies` returns service -> requests answered with an error."""
        rules = [MOTION, SCORER]
        rules += [
            judge_rule(name) for one in run_loop.guardrails.readings[-1:] for name, _ in _by_name(one.policy, "judged")
        ]
        for rule in rules:
            self.process_metrics.add("douga_guard_alarms_total", 0, rule=rule)

        def state() -> Iterator[GaugeSample]:
            yield from self._progress(run_loop)
            yield from self._ledger(run_loop.exchange)
            yield from of_readings(run_loop.guardrails.readings)
            yield from self._workers()
            for service, count in error_replies().items():
                self._rise("douga_requests_refused_total", count, service=service)

        list(state())  # sets the baseline: counts of earlier starts are not counted again
        self.process_metrics.read(state)

    def _progress(self, run_loop: RunLoop) -> Iterator[GaugeSample]:
        yield GaugeSample("douga_step", run_loop.step)
        yield GaugeSample("douga_steps_configured", self.config.steps)
        yield GaugeSample("douga_policy_lag_limit_pushes", self.config.exchange.max_lag)
        for phase in PHASES:
            yield GaugeSample("douga_phase", float(phase == run_loop.phase), {"phase": phase})
        if self._last is not None:
            yield from of_step(self._last)
        yield from self._pace()

    def _pace(self) -> Iterator[GaugeSample]:
        if self._pushed is not None:
            yield GaugeSample("douga_last_push_timestamp_seconds", self._pushed)
        ends = list(self._ends)
        if len(ends) > 1:
            pace = (ends[-1] - ends[0]) / (len(ends) - 1)
            yield GaugeSample("douga_push_interval_expected_seconds", pace * self.config.learner.steps_per_push)

    def _ledger(self, exchange: Any) -> Iterator[GaugeSample]:
        counts = exchange.counts()
        for state, count in counts.items():
            yield GaugeSample("douga_queue_items", count, {"state": state.value})
        self._rise("douga_queue_admitted_total", sum(counts.values()))
        for reason in LOST:
            self._rise("douga_queue_dropped_total", counts[reason], reason=reason)
        wasted = exchange.wasted()
        for reason in WASTED:
            self._rise("douga_candidates_wasted_total", wasted.get(reason, 0), reason=reason)
        yield GaugeSample("douga_blobs_bytes", exchange.bytes_on_disk())
        yield GaugeSample("douga_blobs_limit_bytes", self.config.exchange.max_bytes)
        yield GaugeSample("douga_disk_free_bytes", shutil.disk_usage(self.folder).free)
        yield GaugeSample("douga_policy_version", exchange.current_version(), {"role": LEARNER})

    def _workers(self) -> Iterator[GaugeSample]:
        serial = self.process == SERIAL
        for role in ROLES:
            wanted = 1 if serial else self.config.workers_of(role)
            yield GaugeSample("douga_workers_configured", wanted, {"role": role})
            yield GaugeSample("douga_workers_up", 1 if serial else len(self.targets.workers(role)), {"role": role})

    def _rise(self, name: str, now: int, **labels: str) -> None:
        """Adds the increase of a ledger count to a counter. The first call only sets the baseline.

        A rollback can decrease the count; the counter then stays constant.
        """
        with self._lock:
            key = (name, *labels.values())
            before = self._seen.get(key)
            self._seen[key] = now
            self.process_metrics.add(name, max(0, now - (now if before is None else before)), **labels)


class MeteredExchange(LocalExchange):
    """The exchange of a run, which reports to `run_metrics` what workers submit."""

    def __init__(
        self, folder: Path, config: RunConfig, source: Callable[[int], Prompt], run_metrics: RunMetrics
    ) -> None:
        super().__init__(folder, config, source, held=True)  # the run holds the folder's lock
        self.run_metrics = run_metrics
        self.on_scores: Callable[[Sequence[Score]], None] = lambda scores: None  # called with what was accepted

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> Submitted:
        """See `SamplerExchange.submit_candidate`."""
        answer = super().submit_candidate(lease, candidate)
        self.run_metrics.process_metrics.add(
            "douga_candidates_total", float(answer.accepted), purpose=lease.prompt.purpose
        )
        return answer

    def fail_sampling(self, lease: SamplingLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        """See `SamplerExchange.fail_sampling`."""
        super().fail_sampling(lease, reason, kind)
        if kind is FailureKind.NON_FINITE:
            self.run_metrics.process_metrics.add("douga_nonfinite_total", role=SAMPLER)

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        """See `SamplerExchange.submit_scores`."""
        answers = super().submit_scores(worker, scores)
        metrics = self.run_metrics.process_metrics
        metrics.observe("douga_score_batch_clips", len(scores))
        accepted = [score for score, answer in zip(scores, answers, strict=True) if answer.accepted]
        self.on_scores(accepted)
        for score in accepted:
            if not all(map(isfinite, score.values.values())):
                metrics.add("douga_nonfinite_total", role=REWARDER)
            elif score.purpose is Purpose.TRAIN:
                self.run_metrics.scored(score.values)
        return answers

    def announce(self, version: WeightVersion) -> None:
        """See `LearnerExchange.announce`."""
        super().announce(version)
        self.run_metrics.announced()
