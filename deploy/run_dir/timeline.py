"""The run's units of work on one time axis, and figures derived from it.

A run may have been started several times. The axis joins the starts and omits the time between them: second 0 is the
first record of the first start, and each start begins where the previous one ended. The journal of a long run keeps
only the newest units of work (`timeline_bytes`). The axis still covers the whole run, with bars only at its end.
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
    """One unit of work of one worker."""

    worker: str
    kind: str
    start: float  # seconds on the axis
    end: float
    units: int = 1  # `Span.units`


@dataclass(frozen=True)
class Timeline:
    """All units of work, sorted by start, and the length of the axis."""

    bars: tuple[Bar, ...]
    marks: tuple[tuple[float, str], ...]  # second, event
    seconds: float
    since: float = 0.0  # Unix time before which units of work were dropped; 0: none were
    at: Callable[[float], float] = field(default=float, compare=False, repr=False)  # Unix time -> second on the axis

    @property
    def first(self) -> float:
        """The second on the axis from which all units of work are known."""
        return self.bars[0].start if self.since else 0.0

    @property
    def workers(self) -> list[str]:
        """Worker names by role in the order of the data flow, then by number."""

        def place(worker: str) -> tuple[int, int, str]:
            role, _, number = worker.rpartition("-")
            return ROLES.index(role) if role in ROLES else len(ROLES), int(number) if number.isdigit() else 0, worker

        return sorted({bar.worker for bar in self.bars}, key=place)

    def between(self, first: float, last: float, *more: Bar) -> Timeline:
        """Returns the same axis with the bars, and `more` bars, between two seconds. Bars across a limit are cut."""
        cut = [
            replace(bar, start=max(bar.start, first), end=min(bar.end, last))
            for bar in (*self.bars, *more)
            if bar.end > first and bar.start < last
        ]
        return replace(self, bars=tuple(cut), marks=tuple(mark for mark in self.marks if first <= mark[0] <= last))

    def busy(self, worker: str | None = None, kind: str | None = None) -> float:
        """Busy seconds of a worker, of a kind of work, or of both. None matches all."""
        return sum(
            bar.end - bar.start for bar in self.bars if worker in (None, bar.worker) and kind in (None, bar.kind)
        )

    def overlap(self, kind: str, other: str) -> float:
        """Seconds in which both kinds of work ran at the same time, on any workers."""
        one, two = (deque(_union(bar for bar in self.bars if bar.kind == wanted)) for wanted in (kind, other))
        seconds = 0.0
        while one and two:
            (start, end), (first, last) = one[0], two[0]
            seconds += max(0.0, min(end, last) - max(start, first))
            (one if end < last else two).popleft()
        return seconds


def of(folder: Path) -> Timeline:
    """Reads the timeline of a run folder."""
    spans = read_json_lines(folder / TIMELINE)
    work = read(spans, read_json_lines(folder / EVENTS))
    forgotten = older(folder / TIMELINE).exists()  # conservative: the older part may still be complete
    return replace(work, since=min(span["began"] for span in spans)) if forgotten and spans else work


def read(spans: Sequence[Record], events: Sequence[Record]) -> Timeline:
    """Builds the timeline from the records of timeline.jsonl and events.jsonl."""
    moments = sorted([(span["began"], span["seconds"]) for span in spans] + [(event["time"], 0.0) for event in events])
    if not moments:
        return Timeline((), (), 0.0)
    shifts = _shifts(moments, [event["time"] for event in events if event["event"] in STARTS])

    def at(time: float) -> float:
        return time - next((shift for begins, shift in reversed(shifts) if time >= begins), moments[0][0])

    bars = [
        Bar(
            *(span["worker"], span["kind"], at(span["began"]), at(span["began"]) + span["seconds"]),
            units=span.get("units", 1),
        )
        for span in sorted(spans, key=lambda span: span["began"])
    ]
    marks = tuple((at(event["time"]), event["event"]) for event in events)
    return Timeline(tuple(bars), marks, max([bar.end for bar in bars] + [second for second, _ in marks]), at=at)


def _shifts(moments: Sequence[tuple[float, float]], starts: Sequence[float]) -> list[tuple[float, float]]:
    """Returns (Unix time from which it applies, seconds to subtract) per start of the run."""
    begins = sorted({moments[0][0], *(time for time in starts if time > moments[0][0])})
    shifts, axis = [], 0.0
    for index, begin in enumerate(begins):
        until = begins[index + 1] if index + 1 < len(begins) else float("inf")
        shifts.append((begin, begin - axis))
        axis += max(time + seconds for time, seconds in moments if begin <= time < until) - begin
    return shifts


def _union(bars: Iterable[Bar]) -> list[tuple[float, float]]:
    """Returns the sorted, disjoint intervals that the bars cover."""
    merged: list[tuple[float, float]] = []
    for bar in sorted(bars, key=lambda bar: bar.start):
        if merged and bar.start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], bar.end))
        else:
            merged.append((bar.start, bar.end))
    return merged
