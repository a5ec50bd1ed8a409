"""Plain lines come at changes and at intervals, not at every unit of work."""

from __future__ import annotations

import io

import pytest

from common.config import load_config
from common.messages import StepStats
from deploy.run_dir.progress import Plain, Status, ThroughputTracker, minutes, showing


def test_a_training_line():
    status = Status("training", 12, 30, 12, 96, 0.5, 61.25, 0.0312, 1.5, 75.0)
    assert status.line() == (
        "training 12/30  pairs 96  version 12  lag 0.5  reward 61.25  loss 0.0312  1.50 groups/s  1:15 left"
    )


def test_an_evaluation_line_is_short():
    assert Status("evaluating base", 3, 96, groups_per_second=2.0).line() == "evaluating base 3/96  2.00 groups/s"


def stats(step: int, reward: float) -> StepStats:
    return StepStats(step, 0.1, 1.0, 1e-5, 0.5, 1, reward, 3.0, False, True, {})


def test_the_time_left_follows_the_last_steps():
    now = 100.0
    pace = ThroughputTracker(load_config(flags={"steps": "30"}), clock=lambda: now)
    assert pace.status(0, 0).eta is None
    for step in range(1, 21):  # ten slow steps, then ten fast ones
        now += 9.0 if step <= 10 else 2.0
        pace.add(stats(step, 0.4 if step <= 10 else 0.6))
    pace.groups = 55
    status = pace.status(20, 7)
    assert (status.done, status.total, status.version, status.pairs) == (20, 30, 7, 160)
    assert status.eta == pytest.approx(20.0)  # ten steps of 2 s
    assert status.reward == pytest.approx(60.0)
    assert status.groups_per_second == pytest.approx(0.5)  # 55 in 110 s
    assert (status.lag, status.loss) == (0.5, 0.1)


def test_lines_come_at_phases_ends_and_every_ten_seconds():
    now = 0.0
    stream = io.StringIO()
    plain = Plain(stream, clock=lambda: now)
    for now, phase, done in ((0, "a", 1), (1, "a", 2), (9.9, "a", 3), (10, "a", 4), (11, "a", 9), (12, "b", 1)):  # noqa: B007
        plain.update(Status(phase, done, 9))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/9", "4/9", "9/9", "1/9"]


def test_output_that_is_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    with showing(stream) as progress:
        progress.update(Status("training", 1, 2))
        progress.message("hello")
    assert stream.getvalue().startswith("training 1/2")
    assert stream.getvalue().endswith("hello\n")


def test_a_terminal_gets_a_panel():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with showing(stream) as progress:
        progress.update(Status("training", 1, 2, version=7))
        progress.update(Status("training", 2, 2, version=8))
    assert "2/2" in stream.getvalue()
    assert "version 8" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3725, "1:02:05")])
def test_minutes(seconds, text):
    assert minutes(seconds) == text
