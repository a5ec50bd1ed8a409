"""Converts a run's timeline to a trace file for https://ui.perfetto.dev or chrome://tracing.

The file is a JSON object in the Trace Event Format. `ph` is the type of an event, `ts` its start and `dur` its length,
both in microseconds. Times are on the run's own axis (`deploy/run_dir/timeline.py`), which leaves out the time between
a stop and the next start.

| ph | content |
|---|---|
| M | names: a process per role, a thread per worker |
| X | a unit of work; the args of a learner step are its metrics |
| i | a weight push, a reference refresh, or an event of the run |
| C | counters: groups in the queue by state, lag, reward, the algorithm's metrics |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.exchange.api import QUEUE
from common.roles import ROLES, role_of
from deploy.inspect.snapshot import RunSnapshot
from deploy.run_dir.timeline import Timeline

Event = dict[str, Any]
RUN = 1  # pid of events and counters that belong to no worker; the roles' pids follow
FIGURES = ("step", "loss", "reward", "lag", "lag_max", "grad_norm", "refreshed", "pushed")
SLACK = 1.0  # maximum seconds between the end of a step's span and its metrics record


def trace(snapshot: RunSnapshot) -> dict[str, Any]:
    """Returns the trace as a JSON-serialisable dict."""
    axis = snapshot.timeline
    events = [*_names(axis), *_work(snapshot, axis), *_instants(snapshot, axis), *_counters(snapshot, axis)]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"run": snapshot.config.name, "folder": str(snapshot.folder)},
    }


def _place(worker: str) -> tuple[int, int]:
    """Returns the (pid, tid) of a worker."""
    role, _, number = worker.rpartition("-")
    return RUN + 1 + (ROLES.index(role) if role in ROLES else len(ROLES)), int(number) if number.isdigit() else 0


def _names(axis: Timeline) -> Iterator[Event]:
    yield _name("process_name", RUN, 0, "run")
    for pid, role in enumerate([*ROLES, "others"], RUN + 1):
        if any(_place(worker)[0] == pid for worker in axis.workers):
            yield _name("process_name", pid, 0, f"{role}s" if role in ROLES else role)
            yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for worker in axis.workers:
        yield _name("thread_name", *_place(worker), worker)


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _microseconds(seconds: float) -> int:
    return round(1e6 * seconds)


def _work(snapshot: RunSnapshot, axis: Timeline) -> Iterator[Event]:
    figures = _figures(snapshot)
    for index, span in enumerate(snapshot.spans):
        pid, tid = _place(span["worker"])
        yield {
            "ph": "X",
            "name": span["kind"],
            "cat": role_of(span["worker"]),
            "pid": pid,
            "tid": tid,
            "ts": _microseconds(axis.at(span["began"])),
            "dur": _microseconds(span["seconds"]),
            "args": {"units": span.get("units", 1)} | figures.get(index, {}),
        }


def _figures(snapshot: RunSnapshot) -> dict[int, dict[str, Any]]:
    """Returns index of a learner span -> metrics of its step: the first record written within `SLACK` of its end."""
    learning = [
        (span["began"] + span["seconds"], index)
        for index, span in enumerate(snapshot.spans)
        if span["kind"] == "learning" and span["worker"].endswith("-0")
    ]
    found, records = {}, iter(sorted(snapshot.steps, key=lambda one: one["time"]))
    record = next(records, None)
    for ended, index in sorted(learning):
        while record is not None and record["time"] < ended - SLACK:
            record = next(records, None)
        if record is not None and record["time"] <= ended + SLACK:
            found[index] = {name: record[name] for name in FIGURES} | record["metrics"]
            record = next(records, None)
    return found


def _instants(snapshot: RunSnapshot, axis: Timeline) -> Iterator[Event]:
    for record in snapshot.steps:
        for name, happened in (("push", record["pushed"]), ("refresh", record["refreshed"])):
            if happened:
                yield _instant(axis, record["time"], name, {"step": record["step"]})
    for event in snapshot.events:
        args = {key: value for key, value in event.items() if key not in ("time", "event", "config")}
        yield _instant(axis, event["time"], event["event"], args | {"time": event["time"]})


def _instant(axis: Timeline, time: float, name: str, args: Mapping[str, Any]) -> Event:
    return {"ph": "i", "s": "g", "name": name, "pid": RUN, "tid": 0, "ts": _microseconds(axis.at(time)), "args": args}


def _counters(snapshot: RunSnapshot, axis: Timeline) -> Iterator[Event]:
    for record in snapshot.steps:
        at = _microseconds(axis.at(record["time"]))
        yield _counter(at, "queue", {state.value: record["queue"].get(state, 0) for state in QUEUE})
        yield _counter(at, "lag", {"mean": record["lag"], "max": record["lag_max"]})
        yield _counter(at, "reward", {"reward": 100 * record["reward"]})
        for name, value in record["metrics"].items():
            yield _counter(at, name, {name: value})


def _counter(at: int, name: str, values: Mapping[str, float]) -> Event:
    return {"ph": "C", "name": name, "pid": RUN, "tid": 0, "ts": at, "args": values}
