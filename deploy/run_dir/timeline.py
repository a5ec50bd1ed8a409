"""Who worked when: the run's units of work on one time axis, and figures about it.

A run may have been started many times. Its starts follow each other on the axis without the hours between them: second
0 is the first start's first record, and a start begins where the one before ended. Of a long run the journal keeps
the newest units of work (`timeline_bytes`): the axis is the whole run's, the bars lie at its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.roles import ROLES
from deploy.run_dir.jsonl import EVENTS, TIMELINE, older, read_json_lines

STARTS = ("started", "resumed")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """One stretch of work of one worker."""

    worker: str
    kind: str
    start: float  # seconds on the axis
    end: float


@dataclass(frozen=True)
class Timeline:
    """All work, in order of its start, and the axis' length."""

    bars: tuple[Bar, ...]
    marks: tuple[tuple[float, str], ...]  # second, event
    seconds: float
    since: float = 0.0  # seconds since 1970: earlier work is forgotten; 0: none is
    at: Callable[[float], float] = field(default=float, compare=False, repr=False)  # a time since 1970 -> its second

    @property
    def first(self) -> float:
        """The second from which on all work is known."""
        return self.bars[0].start if self.since else 0.0

    @property
    def workers(self) -> list[str]:
        """Samplers, rewarders, learners: the order in which data flows; a role's workers by number."""

        def place(worker: str) -> tuple[int, int, str]:
            role, _, number = worker.rpartition("-")
            return ROLES.index(role) if role in ROLES else len(ROLES), int(number) if number.isdigit() else 0, worker

        return sorted({bar.worker for bar in self.bars}, key=place)

    def between(self, first: float, last: float, *more: Bar) -> Timeline:
        """The same axis with the work, and `more` of it, that lies between two seconds; longer bars are cut."""
        cut = [
            replace(bar, start=max(bar.start, first), end=min(bar.end, last))
            for bar in (*self.bars, *more)
            if bar.end > first and bar.start < last
        ]
        return replace(self, bars=tuple(cut), marks=tuple(mark for mark in self.marks if first <= mark[0] <= last))

    def busy(self, worker: str | None = None, kind: str | None = None) -> float:
        """Seconds of work of a worker, or of a kind."""
        return sum(
            bar.end - bar.start for bar in self.bars if worker in (None, bar.worker) and kind in (None, bar.kind)
        )

    def overlap(self, kind: str, other: str) -> float:
        """Seconds in which both kinds of work were going on, by whomever."""
        one, two = (deque(_union(bar for bar in self.bars if bar.kind == wanted)) for wanted in (kind, other))
        seconds = 0.0
        while one and two:
            (start, end), (first, last) = one[0], two[0]
            seconds += max(0.0, min(end, last) - max(start, first))
            (one if end < last else two).popleft()
        return seconds


def of(folder: Path) -> Timeline:
    """The axis of a run folder."""
    spans = read_json_lines(folder / TIMELINE)
    work = read(spans, read_json_lines(folder / EVENTS))
    forgotten = older(folder / TIMELINE).exists()  # perhaps nothing is, yet
    return replace(work, since=min(span["began"] for span in spans)) if forgotten and spans else work


def read(spans: Sequence[Record], events: Sequence[Record]) -> Timeline:
    """The axis of a run from timeline.jsonl and events.jsonl."""
    moments = sorted([(span["began"], span["seconds"]) for span in spans] + [(event["time"], 0.0) for event in events])
    if not moments:
        return Timeline((), (), 0.0)
    shifts = _shifts(moments, [event["time"] for event in events if event["event"] in STARTS])

    def at(time: float) -> float:
        return time - next((shift for begins, shift in reversed(shifts) if time >= begins), moments[0][0])

    bars = [
        Bar(span["worker"], span["kind"], at(span["began"]), at(span["began"]) + span["seconds"])
        for span in sorted(spans, key=lambda span: span["began"])
    ]
    marks = tuple((at(event["time"]), event["event"]) for event in events)
    return Timeline(tuple(bars), marks, max([bar.end for bar in bars] + [second for second, _ in marks]), at=at)


def _shifts(moments: Sequence[tuple[float, float]], starts: Sequence[float]) -> list[tuple[float, float]]:
    """(time from which it holds, seconds to take away) per start of the run."""
    begins = sorted({moments[0][0], *(time for time in starts if time > moments[0][0])})
    shifts, axis = [], 0.0
    for index, begin in enumerate(begins):
        until = begins[index + 1] if index + 1 < len(begins) else float("inf")
        shifts.append((begin, begin - axis))
        axis += max(time + seconds for time, seconds in moments if begin <= time < until) - begin
    return shifts


def _union(bars: Iterable[Bar]) -> list[tuple[float, float]]:
    """The stretches that at least one of `bars` covers, in order, apart from each other."""
    merged: list[tuple[float, float]] = []
    for bar in sorted(bars, key=lambda bar: bar.start):
        if merged and bar.start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], bar.end))
        else:
            merged.append((bar.start, bar.end))
    return merged
