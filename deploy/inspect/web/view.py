"""Selects the data of the page, as a JSON-serialisable dict.

```
{"status":   {...}        the status, as `douga status --json` prints it (`deploy/inspect/status.py`)
 "lines":    [...]        one line per worker, as `douga status` prints it
 "groups":   [{"ordinal", "text", "version", "state", "clip", "why",
               "kept": [{"name", "reward", "weight", "scores"}, ...]}, ...]
 "lanes":    svg | null   the workers' units of work in the last minutes
 "curves":   {"tag", "drawn": [{"title", "note", "now", "svg"}, ...]} | null}
```

Rewards are 0..100. Curves are sent only if they have changed since the tag in the request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any

from common.config import RunConfig, algorithm_class
from common.errors import BAD_INPUT
from common.exchange.queries import KeptCandidate, RecentGroup, newest_groups
from common.exchange.storage.group_blobs import SHOWN
from common.exchange.storage.ledger_reader import open_readonly
from deploy.inspect.snapshot import RunReader, RunSnapshot
from deploy.inspect.status import run_status
from deploy.inspect.web.videos import GONE
from deploy.results import charts
from deploy.results.report import KINDS, drawn_curves, guard_rows
from deploy.run_dir import timeline

GROUPS = 6  # number of groups shown: the newest that still have their clips; without any, the newest
FRESH = 0.5  # seconds for which the data of one read answers all requests
LANES = 180.0  # seconds of work in the drawing of the workers
NOTES = {"Motion": "% of the base clips' motion"}
JUDGE_NOTE = "points above the base model's clips; grey: the trained reward"


class DashboardState:
    """The page's data, refreshed at most every `FRESH` seconds. Thread-safe."""

    def __init__(self, reader: RunReader) -> None:
        self._reader, self._lock = reader, Lock()
        self._latest: tuple[float, dict[str, Any], dict[int, RecentGroup]] = float("-inf"), {}, {}
        self._curves: dict[str, Any] = {"tag": ""}

    def page_data(self, tag: str) -> dict[str, Any]:
        """Returns the page's data; ``curves`` is None if they are still those of `tag`.

        Raises `ConfigError` if the run folder cannot be read.
        """
        with self._lock:
            if time.monotonic() - self._latest[0] > FRESH:
                self._refresh()
            return self._latest[1] | {"curves": None if tag == self._curves["tag"] else self._curves}

    def group(self, ordinal: int) -> RecentGroup | None:
        """Returns a group of the last refresh, or None if it is not among them."""
        with self._lock:
            return self._latest[2].get(ordinal)

    def _refresh(self) -> None:
        snapshot = self._reader.read()
        found = run_status(snapshot)
        groups = [] if snapshot.ledger is None else self._groups()
        tag = f"{len(snapshot.steps)}-{len(snapshot.events)}-{len(snapshot.readings)}"
        if tag != self._curves["tag"]:
            self._curves = {"tag": tag, "drawn": curves(snapshot)}
        shown = {
            "status": asdict(found),
            "lines": [one.line for one in found.workers],
            "groups": [group_data(one, snapshot.config) for one in groups],
            "lanes": lanes(snapshot),
        }
        self._latest = time.monotonic(), shown, {one.ordinal: one for one in groups}

    def _groups(self) -> list[RecentGroup]:
        try:
            with open_readonly(self._reader.folder) as ledger:
                groups = newest_groups(ledger, SHOWN)
        except BAD_INPUT:  # the ledger is just being created
            return []
        whole = [one for one in groups if _has_clips(one)]
        return (whole or groups)[:GROUPS]


def _has_clips(group: RecentGroup) -> bool:
    """Whether no clip was deleted: the exchange does that once all kept checkpoints are at or after the group's end."""
    return all(one.file is not None for one in group.kept)


def group_data(group: RecentGroup, config: RunConfig) -> dict[str, Any]:
    """Returns a group as the page receives it: ``clip`` is the URL of its video, or ``why`` says why it has none."""
    there = not config.simulate and _has_clips(group)
    why = "simulated work has no clips" if config.simulate else GONE
    names = algorithm_class(config.algorithm.name).candidate_names
    return {
        "ordinal": group.ordinal,
        "text": group.text,
        "version": group.version,
        "state": group.state,
        "kept": [_kept(one, names[place : place + 1]) for place, one in enumerate(group.kept)],
        "clip": f"groups/{group.ordinal}.mp4" if there else None,
        "why": None if there else why,
    }


def _kept(candidate: KeptCandidate, name: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name[0] if name else f"candidate {candidate.index}",
        "reward": 100 * candidate.reward,
        "weight": candidate.weight,
        "scores": candidate.scores,
    }


# Drawings.


def curves(snapshot: RunSnapshot) -> list[dict[str, str]]:
    """Returns all curves as SVG, over the optimizer steps."""
    return [*_learned(snapshot), *_watched(snapshot)]


def _learned(snapshot: RunSnapshot) -> list[dict[str, str]]:
    return [
        _drawn(title, note, at, [(title, "aligned", values)], snapshot)
        for title, note, at, values in drawn_curves(snapshot.config, snapshot.steps)
    ]


def _watched(snapshot: RunSnapshot) -> list[dict[str, str]]:
    """Returns the curves of the guardrails' readings."""
    at = [one.step for one in snapshot.readings]
    return [
        _drawn(title, NOTES.get(title, JUDGE_NOTE), at, rows, snapshot) for title, rows in guard_rows(snapshot.readings)
    ]


def _drawn(
    title: str, note: str, at: Sequence[int], rows: Sequence[charts.Series], snapshot: RunSnapshot
) -> dict[str, str]:
    last = snapshot.steps[-1]["step"] if snapshot.steps else 0
    svg = charts.series(title, at, rows, _marks(snapshot), "step", until=last)
    return {"title": title, "note": note, "now": f"{rows[-1][2][-1]:.4g}", "svg": svg}


def _marks(snapshot: RunSnapshot) -> list[charts.Mark]:
    """Returns the marks of pushes, refreshes, alarms and resumes, each after a step."""
    happened = [
        (one["step"], kind, f"{kind} after step {one['step']}")
        for one in snapshot.steps
        for kind, did in (("push", one["pushed"]), ("refresh", one["refreshed"]))
        if did
    ]
    kinds = {"alarm": "alarm", "resumed": "resume"}
    happened += [
        (one["step"], kinds[one["event"]], f"{one['event']} after step {one['step']} {one.get('words', '')}".strip())
        for one in snapshot.events
        if one["event"] in kinds
    ]
    return happened


def lanes(snapshot: RunSnapshot) -> str | None:
    """Returns an SVG of the work in the last `LANES` seconds, since the last start; None if there is none."""
    recent = snapshot.ended_since(max((snapshot.last_record or snapshot.now) - LANES, snapshot.started or 0.0))
    return charts.lanes(timeline.read(recent, []), KINDS) if recent else None
