"""The rules of the exchange, with literal numbers."""

import itertools

import pytest

from common.exchange import rules
from common.exchange.api import State
from common.exchange.rules import Bounds, Load, QueuedGroup

BOUNDS = Bounds(pipeline_depth=64, max_lag=1, batch_size=8, groups_per_push=8)


@pytest.mark.parametrize(
    ("running", "live", "spent", "pushes", "expected"),
    [
        (0, 0, 0, 0, 16),  # (1 + 0 + 1) * 8
        (5, 3, 0, 0, 8),  # 16 - 3 - 5
        (0, 16, 0, 0, 0),
        (0, 8, 8, 1, 8),  # (1 + 1 + 1) * 8 = 24, 16 accepted
        (0, 30, 0, 0, 0),  # after a rollback more may be accepted than the bound; never negative
        (0, 16, 24, 4, 8),  # 48 - 40
    ],
)
def test_capacity_is_the_design_formula(running: int, live: int, spent: int, pushes: int, expected: int) -> None:
    assert rules.capacity(BOUNDS, Load(running, live, live, spent), pushes) == expected


def test_pipeline_depth_bounds_running_groups() -> None:
    shallow = Bounds(pipeline_depth=3, max_lag=9, batch_size=8, groups_per_push=8)
    assert rules.capacity(shallow, Load(0, 0, 0, 0), 0) == 3
    assert rules.capacity(shallow, Load(2, 0, 0, 0), 0) == 1
    assert rules.capacity(shallow, Load(3, 0, 0, 0), 0) == 0


def test_capacity_without_reuse_equals_the_simple_formula() -> None:
    """For m = 1 the general rule is exactly min(depth - running, (max_lag + pushes + 1) B - accepted - running)."""
    for lag, per_step, per, step, live, running in itertools.product(
        (0, 1), (2, 3), (1, 2), range(5), range(6), (0, 2)
    ):
        bounds = Bounds(64, lag, per_step, per_step * per)
        pushes, spent = step // per, step * per_step
        plain = max(0, min(64 - running, (lag + pushes + 1) * per_step * per - spent - live - running))
        assert rules.capacity(bounds, Load(running, live, live, spent), pushes) == plain


def test_capacity_ends_with_the_run() -> None:
    last = Bounds(64, 1, 8, 8, total=24)  # three steps
    assert rules.capacity(last, Load(0, 0, 0, 0), 0) == 16
    assert rules.capacity(last, Load(0, 8, 8, 8), 1) == 8  # (1 + 1 + 1) 8 - 16
    assert rules.capacity(last, Load(0, 8, 8, 16), 2) == 0  # (1 + 2 + 1) 8 would admit 8 more, but no step is left
    assert rules.capacity(last, Load(0, 7, 7, 16), 2) == 1  # one of them expired


def test_capacity_counts_uses_when_pairs_are_trained_twice() -> None:
    twice = Bounds(64, 1, 2, 2, max_times_trained=2)
    assert rules.capacity(twice, Load(0, 0, 0, 0), 0) == 2  # 4 uses, 2 each
    assert rules.capacity(twice, Load(0, 2, 4, 0), 0) == 0
    assert rules.capacity(twice, Load(0, 2, 2, 2), 1) == 1  # 6 uses - 2 committed - 2 left in live pairs = 2 uses
    tight = Bounds(64, 0, 2, 2, max_times_trained=2)
    assert rules.capacity(tight, Load(0, 0, 0, 0), 0) == 2  # a step needs two distinct pairs
    assert rules.capacity(tight, Load(0, 1, 2, 0), 0) == 1


def test_lag_and_expiry() -> None:
    assert rules.lag(5, 3) == 2
    assert rules.lag(3, 5) == 0
    assert not rules.is_stale(1, 1)
    assert rules.is_stale(2, 1)
    assert [rules.freshness(lag) for lag in (0, 1, 3)] == [1.0, 0.5, 0.25]


def test_fifo_takes_the_least_used_then_the_oldest() -> None:
    queue = [QueuedGroup(4, 1, 0.9, 0), QueuedGroup(9, 0, 0.1, 0), QueuedGroup(7, 0, 0.2, 3)]
    assert rules.next_batch(queue, 2, "fifo") == [7, 9]
    assert rules.next_batch(queue, 3, "fifo") == [7, 9, 4]
    assert rules.next_batch(queue, 4, "fifo") == []


def test_priority_order_weighs_priority_with_freshness() -> None:
    queue = [
        QueuedGroup(1, 0, 0.50, 1),
        QueuedGroup(2, 0, 0.30, 0),
        QueuedGroup(3, 0, 0.30, 0),
        QueuedGroup(4, 0, 0.40, 3),
    ]
    assert rules.next_batch(queue, 4, "priority") == [2, 3, 1, 4]  # 0.30, 0.30, 0.25, 0.10


def test_transition_table() -> None:
    assert set(rules.TRANSITIONS) == set(State)
    assert rules.allowed(State.PENDING, State.SAMPLING)
    assert rules.allowed(State.TRAINED, State.READY)
    assert not rules.allowed(State.SAMPLING, State.READY)
    finals = {state for state, following in rules.TRANSITIONS.items() if not following}
    assert finals == {State.TIED, State.FAILED}  # done probes may be scored again


def test_oldest_resumable_step_is_the_oldest_kept_checkpoint() -> None:
    assert rules.oldest_resumable_step([], 2) == 0
    assert rules.oldest_resumable_step([10], 2) == 0
    assert rules.oldest_resumable_step([30, 10, 20], 2) == 20
    assert rules.oldest_resumable_step([10, 20], 1) == 20


def test_disk_room() -> None:
    assert rules.disk_has_room(0, 500, 3, 100)  # the first group always fits
    assert rules.disk_has_room(60, 20, 1, 100)
    assert not rules.disk_has_room(61, 20, 1, 100)
