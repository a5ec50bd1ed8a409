"""What a run writes down while it works: steps, and who did what when. Workers anywhere write into one journal.

```
LEARNER     StepStats ──> metrics.jsonl       one record per optimizer step
any worker  Span      ──> timeline.jsonl      one record per unit of work: the report's time axis
LEARNER     Trained   ──> whoever waits for the end of training
any worker  address   ──> where its metrics are to be had (`deploy/observability/exporter.py`)
any worker  not finite ──> counted
any worker  LogEntry  ──> logs/sampler-3.log  (`deploy/logs/`)
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

from common.messages import LogEntry, Span, StepStats, TrainingFinished
from common.roles import ROLES, role_of
from deploy.run_dir.jsonl import METRICS, TIMELINE, JsonLines

Done = TypeVar("Done")


class Journal(Protocol):
    """What workers report."""

    def step(self, stats: StepStats) -> None:
        """An optimizer step was taken."""
        ...

    def span(self, span: Span) -> None:
        """A unit of work is done."""
        ...

    def trained(self, trained: TrainingFinished) -> None:
        """Training is at its end."""
        ...

    def exporting(self, worker: str, address: str) -> None:
        """The metrics of `worker` are at ``HOST:PORT``. `ValueError` for an address or a worker that is none."""
        ...

    def not_finite(self, worker: str) -> None:
        """Something that `worker` computed is NaN or infinite."""
        ...


class WorkerJournal(Journal, Protocol):
    """What workers on any node may ask of a run's journal."""

    def log(self, worker: str, entries: Sequence[LogEntry]) -> None:
        """Write records into the log file of `worker`. `ValueError` for a name that no worker has."""
        ...


class RunJournal:
    """The journal of a run folder. `queue` says how many groups wait where, for the records of steps. Of units of work
    the newest stay, `timeline_bytes` of them (None: all). What is written down is handed on to the `listeners`. Log
    records of workers go to `logs`.
    """

    def __init__(
        self,
        folder: Path,
        queue: Callable[[], Mapping[str, int]],
        *listeners: Journal,
        timeline_bytes: int | None = None,
        logs: Callable[[str, Sequence[LogEntry]], None] = lambda worker, entries: None,
    ) -> None:
        self.last: StepStats | None = None
        self.end: TrainingFinished | None = None
        self._queue, self._listeners, self._logs = queue, listeners, logs
        self._metrics, self._timeline = JsonLines(folder / METRICS), JsonLines(folder / TIMELINE, timeline_bytes)

    def step(self, stats: StepStats) -> None:
        """See `Journal`; `last` holds it."""
        self._metrics.write(**asdict(stats), queue=dict(self._queue()))
        self.last = stats
        for listener in self._listeners:
            listener.step(stats)

    def span(self, span: Span) -> None:
        """See `Journal`."""
        self._timeline.write(**asdict(span))
        for listener in self._listeners:
            listener.span(span)

    def trained(self, trained: TrainingFinished) -> None:
        """See `Journal`; `end` holds it."""
        self.end = trained
        for listener in self._listeners:
            listener.trained(trained)

    def exporting(self, worker: str, address: str) -> None:
        """See `Journal`; not written down."""
        for listener in self._listeners:
            listener.exporting(worker, address)

    def not_finite(self, worker: str) -> None:
        """See `Journal`; not written down."""
        for listener in self._listeners:
            listener.not_finite(worker)

    def log(self, worker: str, entries: Sequence[LogEntry]) -> None:
        """See `WorkerJournal`."""
        if role_of(worker) not in ROLES:
            raise ValueError(f"{worker!r:.60}: no worker's name")
        self._logs(worker, entries)

    def __enter__(self) -> RunJournal:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._metrics.close()
        self._timeline.close()


def measured(journal: Journal, worker: str, kind: str, work: Callable[[], Done]) -> Done:
    """Do `work` and write down its time, unless there was nothing to do (its answer is false, None or 0).

    A number is how many units were done; any other answer stands for one.
    """
    began, started = time.time(), time.perf_counter()
    done = work()
    if done:
        units = done if isinstance(done, int) else 1
        journal.span(Span(worker, kind, round(began, 3), round(time.perf_counter() - started, 3), int(units)))
    return done
