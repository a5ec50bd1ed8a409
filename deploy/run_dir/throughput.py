"""Throughput of a simulated run, and which role is the bottleneck.

| figure   | meaning                                                                                  |
|----------|------------------------------------------------------------------------------------------|
| seconds  | from the first unit of work to the last, over all starts, without the time between them  |
| steps    | steps in these seconds; `groups` counts sampled groups, retries included                 |
| busy     | share of that time in which a worker of the role was busy, mean over its workers         |
| lag      | pushes between sampling and training, mean and maximum over these steps                  |

A long run keeps only the newest units of work (`timeline_bytes`); the figures cover these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.exchange.api import LOST, HubExchange
from common.roles import ROLES, role_of
from deploy.run_dir import timeline
from deploy.run_dir.jsonl import METRICS, latest_by_step, read_json_lines


def figures(folder: Path, exchange: HubExchange) -> dict[str, Any]:
    """Returns the figures of a run folder in the format of result.json."""
    work = timeline.of(folder)
    steps = [one for one in latest_by_step(read_json_lines(folder / METRICS)) if one["time"] >= work.since]
    seconds = max((bar.end for bar in work.bars), default=0.0) - min((bar.start for bar in work.bars), default=0.0)
    counts = exchange.counts()
    return {
        "seconds": round(seconds, 3),
        "steps": len(steps),
        "clips": sum(bar.units for bar in work.bars if bar.kind == "sampling"),
        "lost": {state.value: counts[state] for state in LOST if counts[state]},
        "wasted": exchange.wasted(),
        "lag_mean": sum(step["lag"] for step in steps) / max(len(steps), 1),
        "lag_max": max((step["lag_max"] for step in steps), default=0),
        "roles": shares(work, work.workers, seconds),
    }


def shares(work: timeline.Timeline, workers: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    """Returns role -> number of its `workers` and the mean share of `seconds` that they were busy, 0 to 1."""
    return {role: _share(work, [one for one in workers if role_of(one) == role], seconds) for role in ROLES}


def _share(work: timeline.Timeline, workers: Sequence[str], seconds: float) -> dict[str, float]:
    busy = sum(work.busy(worker) for worker in workers)
    return {"workers": len(workers), "busy": busy / max(seconds * len(workers), 1e-9)}


def busiest(roles: Mapping[str, Mapping[str, float]]) -> str:
    """The bottleneck: the role with the highest busy share."""
    return max(roles, key=lambda role: roles[role]["busy"])


def lines(found: Mapping[str, Any]) -> list[str]:
    """Formats the figures as lines for a terminal."""
    seconds = max(found["seconds"], 1e-9)
    shares = [f"{role} {how['busy']:.0%} of {how['workers']}" for role, how in found["roles"].items()]
    lost = [f"{count} {what}" for what, count in found["lost"].items()]
    wasted = [f"{count} by {reason}" for reason, count in found["wasted"].items()]
    return [
        f"{found['steps']} steps and {found['clips']} clips in {seconds:.1f} s: "
        f"{found['steps'] / seconds:.2f} steps/s, {found['clips'] / seconds:.2f} clips/s",
        f"busy: {', '.join(shares)}; the {busiest(found['roles'])} is the bottleneck",
        f"lag: mean {found['lag_mean']:.2f}, maximum {found['lag_max']} pushes",
        f"groups lost: {', '.join(lost) or 'none'}; candidates wasted: {', '.join(wasted) or 'none'}",
    ]
