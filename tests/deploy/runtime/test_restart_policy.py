"""Backoff and limits of restarts, with hand-written times."""

import pytest

from deploy.runtime.restart_policy import Quorum, RestartLimitError, Supervisor, TooFewWorkersError


def test_the_backoff_doubles_up_to_a_minute() -> None:
    supervisor = Supervisor(allowed=9)
    assert [supervisor.died("sampler-0", "x", 100.0) - 100.0 for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert supervisor.restarts == 8


def test_crashes_are_counted_per_worker() -> None:
    supervisor = Supervisor(allowed=1)
    assert supervisor.died("sampler-0", "x", 0.0) == 1.0
    assert supervisor.died("sampler-1", "x", 0.0) == 1.0
    with pytest.raises(
        RestartLimitError, match=r"sampler-0 died 2 times within an hour \(cluster.restarts = 1\); last error: y"
    ):
        supervisor.died("sampler-0", "y", 10.0)


def test_crashes_are_forgotten_after_an_hour() -> None:
    supervisor = Supervisor(allowed=2)
    for hour in range(5):
        assert supervisor.died("rewarder-0", "x", 3600.0 * hour) == 3600.0 * hour + 1
    assert supervisor.died("rewarder-0", "x", 3600.0 * 4 + 1) == 3600.0 * 4 + 3  # the second one within the hour


def test_with_no_restarts_allowed_the_first_crash_is_an_error() -> None:
    with pytest.raises(RestartLimitError, match="died 1 times"):
        Supervisor(allowed=0).died("learner", "x", 0.0)


def test_the_first_backoff_is_configurable() -> None:
    supervisor = Supervisor(allowed=3, pause=0.1)
    assert [supervisor.died("sampler-0", "x", 0.0) for _ in range(3)] == [0.1, 0.2, 0.4]


def test_starting_samplers_are_waited_for() -> None:
    quorum = Quorum(least=2, patience=60.0, key="cluster.min_samplers")
    quorum.check(up=0, coming=2, now=0.0)
    quorum.check(up=1, coming=1, now=59.0)
    quorum.check(up=2, coming=0, now=70.0)
    quorum.check(up=1, coming=1, now=100.0)  # one crashed; its timeout starts here
    quorum.check(up=1, coming=1, now=160.0)
    with pytest.raises(
        TooFewWorkersError, match=r"1 samplers have started within cluster.placement_seconds = 60 s; cluster.min_s"
    ):
        quorum.check(up=1, coming=1, now=160.1)


def test_the_run_does_not_wait_for_abandoned_samplers() -> None:
    with pytest.raises(TooFewWorkersError, match=r"1 samplers are left; cluster.min_samplers = 2"):
        Quorum(least=2, patience=60.0, key="cluster.min_samplers").check(up=1, coming=0, now=0.0)
    Quorum(least=0, patience=60.0, key="cluster.min_samplers").check(up=0, coming=0, now=0.0)
