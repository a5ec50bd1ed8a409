"""Pauses and the end of patience, with times given by hand."""

import pytest

from deploy.supervisor import GivenUp, Supervisor


def test_pauses_double_up_to_a_minute() -> None:
    supervisor = Supervisor(allowed=9)
    assert [supervisor.died("sampler-0", "x", 100.0) - 100.0 for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert supervisor.restarts == 8


def test_workers_are_counted_apart() -> None:
    supervisor = Supervisor(allowed=1)
    assert supervisor.died("sampler-0", "x", 0.0) == 1.0
    assert supervisor.died("sampler-1", "x", 0.0) == 1.0
    with pytest.raises(GivenUp, match=r"sampler-0 died 2 times within an hour \(cluster.restarts = 1\), at last of: y"):
        supervisor.died("sampler-0", "y", 10.0)


def test_deaths_are_forgotten_after_an_hour() -> None:
    supervisor = Supervisor(allowed=2)
    for hour in range(5):
        assert supervisor.died("rewarder-0", "x", 3600.0 * hour) == 3600.0 * hour + 1
    assert supervisor.died("rewarder-0", "x", 3600.0 * 4 + 1) == 3600.0 * 4 + 3  # the second one within the hour


def test_none_allowed_gives_up_at_once() -> None:
    with pytest.raises(GivenUp, match="died 1 times"):
        Supervisor(allowed=0).died("learner", "x", 0.0)
