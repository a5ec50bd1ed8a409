"""The time axis, with times that can be checked by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from deploy.run_dir import timeline
from deploy.run_dir.jsonl import EVENTS, TIMELINE, JsonLines
from deploy.run_dir.timeline import Bar, Timeline


def span(worker: str, kind: str, began: float, seconds: float) -> dict[str, Any]:
    return {"time": began + seconds, "worker": worker, "kind": kind, "began": began, "seconds": seconds}


def event(time: float, name: str) -> dict[str, Any]:
    return {"time": time, "event": name}


def test_the_axis_begins_with_the_first_record() -> None:
    spans = [span("learner-0", "learning", 1010.0, 5.0), span("sampler-0", "sampling", 1002.0, 6.0)]
    work = timeline.read(spans, [event(1000.0, "started"), event(1016.0, "finished")])
    assert work.bars == (Bar("sampler-0", "sampling", 2.0, 8.0), Bar("learner-0", "learning", 10.0, 15.0))
    assert work.marks == ((0.0, "started"), (16.0, "finished"))
    assert work.seconds == 16.0


def test_the_time_between_two_starts_is_left_out() -> None:
    spans = [
        span("sampler-0", "sampling", 100.0, 10.0),  # killed after it: no event for the end
        span("sampler-0", "sampling", 5005.0, 3.0),
        span("sampler-0", "sampling", 9001.0, 1.0),
    ]
    events = [event(98.0, "started"), event(5000.0, "resumed"), event(5020.0, "interrupted"), event(9000.0, "resumed")]
    work = timeline.read(spans, events)
    # start 1: 98 .. 110 -> 0 .. 12; start 2: 5000 .. 5020 -> 12 .. 32; start 3: 9000 .. 9002 -> 32 .. 34
    assert [(bar.start, bar.end) for bar in work.bars] == [(2.0, 12.0), (17.0, 20.0), (33.0, 34.0)]
    assert work.marks == ((0.0, "started"), (12.0, "resumed"), (32.0, "interrupted"), (32.0, "resumed"))
    assert work.seconds == 34.0


def test_workers_come_in_the_order_of_the_data() -> None:
    names = ("learner-0", "sampler-10", "rewarder-0", "sampler-2")
    work = Timeline(tuple(Bar(name, "x", 0, 1) for name in names), (), 1)
    assert work.workers == ["sampler-2", "sampler-10", "rewarder-0", "learner-0"]


def test_busy_and_overlapping_seconds() -> None:
    work = Timeline(
        (
            Bar("sampler-0", "sampling", 0.0, 10.0),
            Bar("sampler-1", "sampling", 5.0, 12.0),  # together 0 .. 12
            Bar("sampler-0", "sampling", 20.0, 24.0),
            Bar("learner-0", "learning", 11.0, 21.0),  # 11 .. 12 and 20 .. 21
            Bar("learner-0", "learning", 30.0, 31.0),
        ),
        (),
        31.0,
    )
    assert work.busy("sampler-0") == 14.0
    assert work.busy(kind="learning") == 11.0
    assert work.overlap("sampling", "learning") == pytest.approx(2.0)
    assert work.overlap("learning", "sampling") == pytest.approx(2.0)
    assert work.overlap("learning", "loading") == 0.0


def test_no_records_give_an_empty_axis() -> None:
    assert timeline.read([], []) == Timeline((), (), 0.0)


def test_a_long_run_has_the_whole_axis_and_only_the_last_bars(tmp_path: Path) -> None:
    with JsonLines(tmp_path / EVENTS, clock=lambda: 1000.0) as events:
        events.write(event="started")
    with JsonLines(tmp_path / TIMELINE, bound=1000) as spans:
        for second in range(40):
            spans.write(worker="sampler-0", kind="sampling", began=1010.0 + second, seconds=0.5)
    work = timeline.of(tmp_path)
    kept = len(work.bars)
    assert 5 < kept < 15
    assert (work.since, work.first, work.seconds) == (1050.0 - kept, 50.0 - kept, 49.5)
    assert work.bars[-1] == Bar("sampler-0", "sampling", 49.0, 49.5)


def test_overlap_is_found_in_one_pass() -> None:
    """As many bars as a long run has: comparing all pairs would take hours."""
    many = 100_000
    bars = [Bar("sampler-0", "sampling", 2.0 * i, 2.0 * i + 1) for i in range(many)]
    bars += [Bar("learner-0", "learning", 2.0 * i + 0.75, 2.0 * i + 1.5) for i in range(many)]
    began = time.monotonic()
    assert Timeline(tuple(bars), (), 2.0 * many).overlap("sampling", "learning") == many / 4
    assert time.monotonic() - began < 60
