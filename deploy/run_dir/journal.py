"""The journal of a run: optimizer steps and units of work. Workers on all nodes write to the same journal.

```
LEARNER     StepStats ──> metrics.jsonl       one record per optimizer step
any worker  Span      ──> timeline.jsonl      one record per unit of work: the report's time axis
LEARNER     TrainingFinished ──> the run loop, which waits for the end of training
any worker  address   ──> where its metrics are served (`deploy/observability/exporter.py`)
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
    """Events that workers report."""

    def step(self, stats: StepStats) -> None:
        """An optimizer step was taken."""
        ...

    def span(self, span: Span) -> None:
        """A unit of work was completed."""
        ...

    def trained(self, trained: TrainingFinished) -> None:
        """Training has finished."""
        ...

    def exporting(self, worker: str, address: str) -> None:
        """The metrics of `worker` are served at ``HOST:PORT``. Raises `ValueError` for a malformed address or name."""
        ...

    def not_finite(self, worker: str) -> None:
        """`worker` computed a NaN or an infinite value."""
        ...


class WorkerJournal(Journal, Protocol):
    """The journal as workers on any node may call it."""

    def log(self, worker: str, entries: Sequence[LogEntry]) -> None:
        """Writes records to the log file of `worker`. Raises `ValueError` if that is not the name of a worker."""
        ...


class RunJournal:
    """The journal of a run folder.

    `queue` returns the number of groups per state, which is stored with every step. The timeline keeps the newest
    `timeline_bytes` bytes (None: all). Every event is passed on to the `listeners`; log records go to `logs`.
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
        """See `Journal`. The step is also kept in `last`."""
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
        """See `Journal`. Also kept in `end`."""
        self.end = trained
        for listener in self._listeners:
            listener.trained(trained)

    def exporting(self, worker: str, address: str) -> None:
        """See `Journal`. Only the listeners receive it."""
        for listener in self._listeners:
            listener.exporting(worker, address)

    def not_finite(self, worker: str) -> None:
        """See `Journal`. Only the listeners receive it."""
        for listener in self._listeners:
            listener.not_finite(worker)

    def log(self, worker: str, entries: Sequence[LogEntry]) -> None:
        """See `WorkerJournal`."""
        if role_of(worker) not in ROLES:
            raise ValueError(f"{worker!r:.60}: not the name of a worker")
        self._logs(worker, entries)

    def __enter__(self) -> RunJournal:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._metrics.close()
        self._timeline.close()


def timed(journal: Journal, worker: str, kind: str, work: Callable[[], Done]) -> Done:
    """Calls `work`, records its duration as a span, and returns its result.

    Nothing is recorded if the result is false (False, None or 0): there was no work. An integer is the number of units
    done; any other result counts as one.
    """
    began, started = time.time(), time.perf_counter()
    done = work()
    if done:
        units = done if isinstance(done, int) else 1
        journal.span(Span(worker, kind, round(began, 3), round(time.perf_counter() - started, 3), int(units)))
    return done
