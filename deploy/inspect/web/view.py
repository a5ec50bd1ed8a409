"""What the page shows of a run, as JSON's values.

```
{"standing": {...}      `deploy/inspect/status.py`, as `douga status --json`
 "lines":    [...]      one per worker, as `douga status` prints it
 "pairs":    [{"ordinal", "text", "version", "state", "gap", "winner": {"reward", "scores"}, "loser", "clip"}, ...]
 "lanes":    svg | null   who worked when, in the last minutes
 "curves":   {"tag", "drawn": [{"title", "note", "now", "svg"}, ...]} | null}
```

Curves are sent when they have changed since the tag that was seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any

from common.errors import BAD_INPUT
from common.exchange.queries import RecentPair, Side, newest_pairs
from common.exchange.storage.ledger_reader import open_readonly
from deploy.inspect.snapshot import RunReader, RunSnapshot
from deploy.inspect.status import run_status
from deploy.results import charts
from deploy.results.report import CURVES, KINDS, guard_rows
from deploy.run_dir import timeline
from deploy.run_dir.timeline import Timeline

PAIRS = 6  # shown at once
FRESH = 0.5  # seconds for which one look serves all who ask
LANES = 180.0  # seconds of work that are drawn
NOTES = {"Motion": "% of the base clips' motion"}
JUDGE_NOTE = "points over the base clips; grey: the trained reward"


class DashboardState:
    """Looks at a run for whoever asks. Thread-safe."""

    def __init__(self, reader: RunReader) -> None:
        self._reader, self._lock = reader, Lock()
        self._seen: tuple[float, dict[str, Any], dict[int, RecentPair]] = float("-inf"), {}, {}
        self._curves: dict[str, Any] = {"tag": ""}

    def look(self, tag: str) -> dict[str, Any]:
        """The page's data; curves only where they are others than those of `tag`. `ConfigError`: no run to read."""
        with self._lock:
            if time.monotonic() - self._seen[0] > FRESH:
                self._renew()
            return self._seen[1] | {"curves": None if tag == self._curves["tag"] else self._curves}

    def pair(self, ordinal: int) -> RecentPair | None:
        """One of the pairs that were shown last."""
        with self._lock:
            return self._seen[2].get(ordinal)

    def _renew(self) -> None:
        seen = self._reader.read()
        found = run_status(seen)
        pairs = [] if seen.books is None else self._pairs()
        tag = f"{len(seen.steps)}-{len(seen.events)}-{len(seen.readings)}"
        if tag != self._curves["tag"]:
            self._curves = {"tag": tag, "drawn": curves(seen)}
        told = {
            "standing": asdict(found),
            "lines": [one.line for one in found.workers],
            "pairs": [told_pair(one, seen.config.simulate) for one in pairs],
            "lanes": lanes(seen),
        }
        self._seen = time.monotonic(), told, {one.ordinal: one for one in pairs}

    def _pairs(self) -> list[RecentPair]:
        try:
            with open_readonly(self._reader.folder) as ledger:
                return newest_pairs(ledger, PAIRS)
        except BAD_INPUT:  # a ledger that is just being made
            return []


def told_pair(pair: RecentPair, simulated: bool) -> dict[str, Any]:
    """A pair as the page gets it; ``clip`` is where its video is, ``why`` says why there is none."""
    there = not simulated and pair.winner.file is not None and pair.loser.file is not None
    why = "simulated work has no clips" if simulated else "clip is gone"
    return {
        "ordinal": pair.ordinal,
        "text": pair.text,
        "version": pair.version,
        "state": pair.state,
        "gap": pair.gap,
        "winner": _side(pair.winner),
        "loser": _side(pair.loser),
        "clip": f"pairs/{pair.ordinal}.mp4" if there else None,
        "why": None if there else why,
    }


def _side(side: Side) -> dict[str, Any]:
    return {"reward": 100 * side.reward, "scores": side.scores}


# Drawings.


def curves(seen: RunSnapshot) -> list[dict[str, str]]:
    """All of them, over the run's minutes."""
    axis = seen.timeline
    return [*_learned(seen, axis), *_watched(seen, axis)]


def _learned(seen: RunSnapshot, axis: Timeline) -> list[dict[str, str]]:
    if not seen.steps:
        return []
    at, marks = [axis.at(one["time"]) / 60 for one in seen.steps], _marks(seen, axis)
    return [
        _drawn(title, note, at, [(title, "aligned", [of(one) for one in seen.steps])], marks, axis)
        for title, note, of in CURVES
    ]


def _watched(seen: RunSnapshot, axis: Timeline) -> list[dict[str, str]]:
    """The guardrails' readings at the time of the step that they are of."""
    times = {one["step"]: axis.at(one["time"]) / 60 for one in seen.steps}
    at, marks = [times.get(one.step, 0.0) for one in seen.readings], _marks(seen, axis)
    return [
        _drawn(title, NOTES.get(title, JUDGE_NOTE), at, rows, marks, axis) for title, rows in guard_rows(seen.readings)
    ]


def _drawn(
    title: str,
    note: str,
    at: Sequence[float],
    rows: Sequence[charts.Series],
    marks: Sequence[charts.Mark],
    axis: Timeline,
) -> dict[str, str]:
    svg = charts.series(title, at, rows, marks, "min", axis.seconds / 60)
    return {"title": title, "note": note, "now": f"{rows[-1][2][-1]:.4g}", "svg": svg}


def _marks(seen: RunSnapshot, axis: Timeline) -> list[charts.Mark]:
    """Pushes, refreshes, alarms and resumes, in minutes."""
    happened = [
        (one["time"], kind, f"{kind} after step {one['step']}")
        for one in seen.steps
        for kind, did in (("push", one["pushed"]), ("refresh", one["refreshed"]))
        if did
    ]
    kinds = {"alarm": "alarm", "resumed": "resume"}
    happened += [
        (one["time"], kinds[one["event"]], f"{one['event']} after step {one['step']} {one.get('words', '')}".strip())
        for one in seen.events
        if one["event"] in kinds
    ]
    return [(axis.at(time) / 60, kind, words) for time, kind, words in happened]


def lanes(seen: RunSnapshot) -> str | None:
    """Who worked when, in the last minutes of the last start."""
    recent = seen.ended_since(max((seen.last_word or seen.now) - LANES, seen.started or 0.0))
    return charts.lanes(timeline.read(recent, []), KINDS) if recent else None
