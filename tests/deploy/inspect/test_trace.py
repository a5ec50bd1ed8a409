"""A trace in literal values, and the fields that the trace event format requires."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from deploy.inspect.trace import trace
from tests.support.runs import event, ledger_summary, snapshot, span, step

FIELDS = {"M": {"name", "args"}, "X": {"name", "cat", "ts", "dur", "args"}, "i": {"name", "ts", "s", "args"},
          "C": {"name", "ts", "args"}}  # fmt: skip


@pytest.fixture
def made() -> dict[str, Any]:
    """Two starts an hour apart: 1000 .. 1020 becomes 0 .. 20, and 5000 .. 5010 becomes 20 .. 30."""
    spans = [
        span("sampler-1", 1001.0, 2.5),
        span("rewarder-0", 1004.0, 0.25, units=16),
        span("learner-0", 1010.0, 10.0),
        span("sampler-0", 5001.5, 1.0, kind="loading"),
        span("learner-0", 5004.0, 6.0),
    ]
    events = [event(1000.0, "started", config="..."), event(5000.0, "resumed", step=1)]
    steps = [step(1, 1020.0, refreshed=True), step(2, 5010.0, pushed=False, queue={"ready": 7, "sampling": 2})]
    return trace(snapshot(6000.0, ledger_summary(), spans, steps, events))


def of(made: dict[str, Any], kind: str, **fields: Any) -> list[dict[str, Any]]:
    found = [one for one in made["traceEvents"] if one["ph"] == kind]
    return [one for one in found if all(one[name] == value for name, value in fields.items())]


def test_every_event_has_the_fields_of_its_kind(made) -> None:
    assert Counter(one["ph"] for one in made["traceEvents"]) == {"M": 11, "X": 5, "i": 4, "C": 18}
    for one in json.loads(json.dumps(made, allow_nan=False))["traceEvents"]:
        assert set(one) == {"ph", "pid", "tid"} | FIELDS[one["ph"]]
        for name in ("ts", "dur", "pid", "tid"):
            assert isinstance(one.get(name, 0), int)
        assert one.get("ts", 0) >= 0
    assert (made["displayTimeUnit"], made["otherData"]["run"]) == ("ms", "mine")


def test_roles_are_processes_and_workers_threads(made) -> None:
    names = {(one["name"], one["pid"], one["tid"]): one["args"].get("name") for one in of(made, "M")}
    assert {key[1:]: name for key, name in names.items() if key[0] == "process_name"} == {
        (1, 0): "run", (2, 0): "samplers", (3, 0): "rewarders", (4, 0): "learners"
    }  # fmt: skip
    assert {key[1:]: name for key, name in names.items() if key[0] == "thread_name"} == {
        (2, 0): "sampler-0", (2, 1): "sampler-1", (3, 0): "rewarder-0", (4, 0): "learner-0"
    }  # fmt: skip


def test_units_of_work_in_microseconds_without_the_time_between_two_starts(made) -> None:
    assert [(one["name"], one["pid"], one["tid"], one["ts"], one["dur"]) for one in of(made, "X")] == [
        ("sampling", 2, 1, 1_000_000, 2_500_000),
        ("scoring", 3, 0, 4_000_000, 250_000),
        ("learning", 4, 0, 10_000_000, 10_000_000),
        ("loading", 2, 0, 21_500_000, 1_000_000),
        ("learning", 4, 0, 24_000_000, 6_000_000),
    ]
    (scoring,) = of(made, "X", name="scoring")
    assert scoring["args"] == {"units": 16}
    first, second = (one["args"] for one in of(made, "X", name="learning"))
    assert (first["step"], first["loss"], first["gap"], first["refreshed"]) == (1, 0.5, 0.0625, True)
    assert (second["step"], second["pushed"]) == (2, False)


def test_pushes_refreshes_and_events_are_instants(made) -> None:
    assert sorted((one["ts"], one["name"]) for one in of(made, "i", s="g")) == [
        (0, "started"), (20_000_000, "push"), (20_000_000, "refresh"), (20_000_000, "resumed")
    ]  # fmt: skip
    assert of(made, "i", name="started")[0]["args"] == {"step": 0, "time": 1000.0}


def test_queue_lag_reward_and_gap_are_counters(made) -> None:
    queue = [(one["ts"], one["args"]) for one in of(made, "C", name="queue")]
    none = dict.fromkeys(("pending", "sampling", "sampled", "scoring", "ready", "training"), 0)
    assert queue == [(20_000_000, none | {"ready": 3}), (30_000_000, none | {"ready": 7, "sampling": 2})]
    assert [one["args"] for one in of(made, "C", name="lag")] == [{"mean": 0.5, "max": 1}] * 2
    assert [one["args"] for one in of(made, "C", name="reward")] == [{"reward": 75.0}] * 2
    assert [one["args"] for one in of(made, "C", name="gap")] == [{"gap": 0.0625}] * 2


def test_a_step_without_a_span_is_not_matched_to_another_span() -> None:
    """A process crashed between the two records, or its step was repeated."""
    spans = [span("learner-0", 1000.0, 5.0), span("learner-0", 1010.0, 5.0), span("learner-0", 1020.0, 5.0)]
    found = trace(snapshot(1100.0, ledger_summary(), spans, [step(1, 1005.0), step(2, 1025.1)]))
    assert [one["args"].get("step") for one in of(found, "X")] == [1, None, 2]
