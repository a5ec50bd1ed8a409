"""The rules of the exchange, as pure functions: admission, staleness, order, transitions.

They use no I/O, clock or database. Decisions depend on the arguments alone, so a resumed run decides the same as an
uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from common.exchange.api import State

# From -> to. Backward edges: a lost lease (sampling, scoring, training), a rollback (trained, expired).
# `paired -> trained`: the lease expired during the step that was then committed, or a used pair became stale.
# `expired -> trained`: the pair itself expired during the step that was then committed.
# `done -> sampled`: a probe is rescored. `pending -> failed`: a probe is retired before it is sampled.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.SAMPLING, State.FAILED}),
    State.SAMPLING: frozenset({State.SAMPLED, State.PENDING, State.FAILED}),
    State.SAMPLED: frozenset({State.SCORING}),
    State.SCORING: frozenset({State.SAMPLED, State.READY, State.TIED, State.DONE, State.FAILED}),
    State.READY: frozenset({State.TRAINING, State.EXPIRED, State.TRAINED}),
    State.TRAINING: frozenset({State.READY, State.TRAINED}),
    State.TRAINED: frozenset({State.READY}),
    State.EXPIRED: frozenset({State.READY, State.TRAINED}),
    State.TIED: frozenset(),
    State.FAILED: frozenset(),
    State.DONE: frozenset({State.SAMPLED}),
}
RUNNING = frozenset({State.SAMPLING, State.SAMPLED, State.SCORING})
LIVE = frozenset({State.READY, State.TRAINING})


def allowed(old: State, new: State) -> bool:
    """Whether a group may move from state `old` to `new`."""
    return new in TRANSITIONS[old]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The configured limits of admission."""

    pipeline_depth: int  # maximum number of running groups
    max_lag: int  # pushes
    batch_size: int
    groups_per_push: int  # B
    times_trained: int = 1  # m, maximum uses of one pair
    total: float = inf  # uses in the whole run


@dataclass(frozen=True, slots=True)
class Load:
    """Counts of the training groups in the ledger now."""

    running: int  # sampling + sampled + scoring
    live: int  # ready + training
    left: int  # remaining uses of the live pairs: m each, minus those committed
    spent: int  # committed uses that were not rolled back


def capacity(bounds: Bounds, load: Load, pushes: int) -> int:
    """How many groups may start sampling now, >= 0. Never more than the run's remaining steps can use.

    With m = 1 this is min(depth - running, (max_lag + pushes + 1) B - (accepted + running)), accepted = ready +
    training + trained. With m > 1 each pair has m uses, and the bound counts uses. The pairs of one step must be
    distinct, so enough pairs for one step are always admitted; otherwise sampler and learner would deadlock. Tied,
    failed and expired groups are in none of the sums, so they free their place.
    """
    unspent = min((bounds.max_lag + pushes + 1) * bounds.groups_per_push, bounds.total) - load.spent
    room = -(-(unspent - load.left - bounds.times_trained * load.running) // bounds.times_trained)
    if unspent >= bounds.batch_size:
        room = max(room, bounds.batch_size - load.live - load.running)
    return max(0, int(min(bounds.pipeline_depth - load.running, room)))


def lag(pushes_now: int, pushes_then: int) -> int:
    """Pushes since a group was sampled, >= 0: a rollback can make the difference negative."""
    return max(0, pushes_now - pushes_then)


def is_stale(pair_lag: int, max_lag: int) -> bool:
    """Whether a pair is too off-policy to train on; lags are in pushes."""
    return pair_lag > max_lag


def freshness(pair_lag: int) -> float:
    """1 / (1 + lag): 1 for a pair of the current push."""
    return 1.0 / (1.0 + pair_lag)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The properties of a queued group that `select` needs."""

    ordinal: int
    uses: int
    priority: float
    lag: int


def select(queue: Sequence[Waiting], count: int, order: str) -> list[int]:
    """The ordinals of the next `count` groups; empty if fewer are queued.

    `fifo`: least used first, then oldest. `priority`: largest weight x freshness first, then least used, then oldest.
    """
    if len(queue) < count:
        return []
    if order == "priority":
        ranked = sorted(queue, key=lambda pair: (-pair.priority * freshness(pair.lag), pair.uses, pair.ordinal))
    else:
        ranked = sorted(queue, key=lambda pair: (pair.uses, pair.ordinal))
    return [pair.ordinal for pair in ranked[:count]]


def final_step(checkpoints: Sequence[int], kept: int) -> int:
    """The step of the oldest of the `kept` newest checkpoints, the earliest to resume from; 0 if there are fewer."""
    ordered = sorted(checkpoints)
    return ordered[-kept] if len(ordered) >= kept else 0


def disk_has_room(used: int, largest_group: int, sampling: int, bound: int) -> bool:
    """Whether one more group fits on disk, given the blobs stored and the groups being sampled. Sizes in bytes."""
    return used == 0 or used + largest_group * (sampling + 1) <= bound
