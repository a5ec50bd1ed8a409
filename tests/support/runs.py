"""Run snapshots (`deploy/inspect/snapshot.py`) with numbers that can be checked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import load_config
from common.exchange.api import State
from deploy.inspect.snapshot import LedgerSummary, RunSnapshot

CLUSTER = {"name": "mine", "mode": "cluster", "steps": "20", "cluster.sampler.count": "2",
           "learner.batch_size": "8", "sampler.candidates": "4"}  # fmt: skip


def span(worker: str, began: float, seconds: float, units: int = 1, kind: str = "") -> dict[str, Any]:
    kinds = {"sampler": "sampling", "rewarder": "scoring", "learner": "learning"}
    kind = kind or kinds[worker.rpartition("-")[0]]
    return {"time": began + seconds, "worker": worker, "kind": kind, "began": began, "seconds": seconds, "units": units}


def event(time: float, name: str, **more: Any) -> dict[str, Any]:
    return {"time": time, "event": name, "step": 0, **more}


def step(number: int, time: float, **more: Any) -> dict[str, Any]:
    """A step that pushed, with a queue of three pairs."""
    own = {"dpo_logits": 0.25, "reward_margin": 0.1, "chosen_error": -0.5, "rejected_error": 0.5}
    own |= {"accuracy": 0.75, "gap": 0.0625}
    figures = {"loss": 0.5, "metrics": own}
    rest = {"grad_norm": 2.0, "lr": 5e-6, "lag": 0.5, "lag_max": 1, "reward": 0.75, "seconds": 4.0, "refreshed": False}
    return {"time": time, "step": number, **figures, **rest, "pushed": True, "queue": {"ready": 3}, **more}


def ledger_summary(work: Any = (), groups: Any = (), **more: Any) -> LedgerSummary:
    counts = dict.fromkeys(State, 0) | {State(state): count for state, count in dict(groups).items()}
    return LedgerSummary(groups=counts, work=dict(work), **more)


def snapshot(
    now: float,
    ledger: LedgerSummary | None,
    spans: Sequence[dict[str, Any]] = (),
    steps: Sequence[dict[str, Any]] = (),
    events: Sequence[dict[str, Any]] = (event(1000.0, "started"),),
    lock_owner: int | None = 4711,
    result: dict[str, Any] | None = None,
    **flags: Any,
) -> RunSnapshot:
    """A snapshot of the cluster run `CLUSTER`, with `flags` on top."""
    config = load_config(flags=CLUSTER | {name.replace("__", "."): value for name, value in flags.items()})
    spans = sorted(spans, key=lambda one: one["time"])
    return RunSnapshot(Path("runs/mine"), config, now, lock_owner, steps, events, spans, [], result, ledger)
