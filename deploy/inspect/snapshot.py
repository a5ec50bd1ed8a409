"""Reads a run folder into a snapshot, without disturbing the run: for `douga status`, `trace` and `watch`.

```
metrics, events, timeline, guardrails .jsonl ──┐
config.toml, result.json ──────────────────────┼──> RunSnapshot: the run at one moment
ledger.sqlite (read-only), ledger.lock ────────┘
```
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.config import RunConfig, load_config
from common.errors import ConfigError
from common.exchange.admission import admission_refusal
from common.exchange.api import State
from common.exchange.queries import Work, work_in_progress
from common.exchange.storage.ledger_reader import LedgerReader, NotBegun, open_readonly
from common.exchange.storage.run_lock import lock_owner
from common.exchange.training import straggler
from common.messages import Purpose
from deploy.guardrails.rules import Reading, from_record, in_order
from deploy.run_dir import layout, timeline
from deploy.run_dir.jsonl import EVENTS, GUARD, METRICS, TIMELINE, Tail, latest_by_step
from deploy.run_dir.timeline import STARTS, Timeline

Record = Mapping[str, Any]


@dataclass(frozen=True)
class LedgerSummary:
    """What the ledger holds."""

    groups: dict[State, int] = field(default_factory=dict)  # training groups by state, or those of a collection
    held_out: dict[State, int] = field(default_factory=dict)  # evaluation groups of the last evaluated version
    held_out_version: int = 0
    work: dict[str, Work] = field(default_factory=dict)  # worker -> the work it has leased
    step: int = 0  # last committed step
    version: int = 0
    pushes: int = 0
    straggler: int | None = None  # group that the learner waits for before it pushes; see `training.straggler`
    refusal: str = ""  # why a sampler with the newest version gets no training group; empty if it gets one
    wasted: dict[str, int] = field(default_factory=dict)  # candidates by reason


@dataclass(frozen=True)
class RunSnapshot:
    """A run at the moment `now`, seconds since 1970."""

    folder: Path
    config: RunConfig
    now: float
    lock_owner: int | None  # pid of the process that holds the ledger; None: the run is not running
    steps: Sequence[Record]  # metrics, one record per step, ascending
    events: Sequence[Record]
    spans: Sequence[Record]  # units of work, by end time
    readings: Sequence[Reading]  # of the guardrails
    result: Record | None
    ledger: LedgerSummary | None  # None: there is no ledger yet

    @property
    def started(self) -> float | None:
        """When the run was last started or resumed, seconds since 1970; None if never."""
        return next((one["time"] for one in reversed(self.events) if one["event"] in STARTS), None)

    @property
    def last_record(self) -> float | None:
        """When the run last wrote a record, seconds since 1970; None if never."""
        return max((records[-1]["time"] for records in (self.events, self.spans, self.steps) if records), default=None)

    @property
    def finished(self) -> bool:
        """Whether the result covers all configured steps, or all prompts of a collection."""
        done = self.result or {}
        if self.config.collect.prompts:
            return done.get("collected", 0) + len(done.get("left_out", ())) == self.config.collect.prompts
        ended = any(name in done for name in ("verdict", "asked", "throughput"))
        return ended and done.get("step") == self.config.steps

    def ended_since(self, time: float) -> Sequence[Record]:
        """Returns the units of work that ended at or after `time`, seconds since 1970."""
        return self.spans[bisect_left(self.spans, time, key=lambda span: span["time"]) :]

    @cached_property
    def units(self) -> dict[str, list[Record]]:
        """Worker -> its units of work since the last start, by end time."""
        found: dict[str, list[Record]] = {}
        for span in self.spans:
            if span["began"] >= (self.started or 0.0):
                found.setdefault(span["worker"], []).append(span)
        return found

    @cached_property
    def timeline(self) -> Timeline:
        """The units of work as bars on the run's time axis."""
        return timeline.read(self.spans, self.events)


class RunReader:
    """Reads one run repeatedly; each read parses only new lines. Not thread-safe."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock
        self._files = {name: Tail(folder / name) for name in (METRICS, EVENTS, TIMELINE, GUARD)}

    def read(self) -> RunSnapshot:
        """The run at this moment. Raises `ConfigError` if the folder holds no run or an unreadable file."""
        config = load_config(self.folder / layout.CONFIG)
        try:
            steps, events, spans, readings = (list(file.read()) for file in self._files.values())
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from None
        return RunSnapshot(
            folder=self.folder,
            config=config,
            now=self._clock(),
            lock_owner=lock_owner(self.folder),
            steps=latest_by_step(steps),
            events=events,
            spans=spans,
            readings=in_order([from_record(one) for one in readings]),
            result=layout.read_result(self.folder),
            ledger=self._ledger_summary(config),
        )

    def _ledger_summary(self, config: RunConfig) -> LedgerSummary | None:
        try:
            with open_readonly(self.folder) as ledger:
                return _summary(ledger, config)
        except NotBegun:
            return None


def _summary(ledger: LedgerReader, config: RunConfig) -> LedgerSummary:
    required = ledger.first("SELECT MAX(required_version) FROM groups WHERE purpose = ?", Purpose.EVAL)
    held_out = 0 if required is None or required[0] is None else int(required[0])
    by_state = "SELECT state, COUNT(*) AS n FROM groups WHERE purpose = ? AND required_version = ? GROUP BY state"
    version = ledger.current_version()
    refusal = admission_refusal(ledger, config, version)
    return LedgerSummary(
        groups=ledger.counts(Purpose.COLLECT if config.collect.prompts else Purpose.TRAIN),
        held_out={State(row["state"]): row["n"] for row in ledger.all(by_state, Purpose.EVAL, held_out)},
        held_out_version=held_out,
        work=work_in_progress(ledger),
        step=ledger.committed_step(),
        version=version,
        pushes=int(ledger.meta("pushes", 0)),
        refusal="" if refusal is None else refusal.message,
        straggler=straggler(ledger, config, ledger.committed_step() + 1),
        wasted=ledger.wasted(),
    )
