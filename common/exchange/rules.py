"""The rules of the exchange, as pure functions: admission, staleness, order, transitions.

They use no I/O, clock or database. Decisions depend on the arguments alone, so a resumed run decides the same as an
uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from common.exchange.api import State

# From -> to. A lost lease moves a group back (from sampling, scoring, training), and so does a rollback (from trained,
# expired). Less obvious:
#   ready -> trained     its lease expired during a step that was then committed, or a used pair became stale
#   expired -> trained   the pair became stale during a step that was then committed
#   done -> sampled      a probe is scored again
#   pending -> failed    a probe is retired before it is sampled
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
    """The configured limits of admission. A use is one pair in one optimizer step."""

    pipeline_depth: int  # maximum number of running groups
    max_lag: int  # pushes
    batch_size: int  # pairs per optimizer step
    groups_per_push: int  # pairs per push: batch_size x steps_per_push
    max_times_trained: int = 1  # maximum uses of one pair
    total: float = inf  # uses in the whole run


@dataclass(frozen=True, slots=True)
class Load:
    """Counts of the training groups in the ledger now."""

    running: int  # sampling + sampled + scoring
    live: int  # ready + training
    left: int  # remaining uses of the live pairs: max_times_trained each, minus those committed
    spent: int  # committed uses that were not rolled back


def capacity(bounds: Bounds, load: Load, pushes: int) -> int:
    """How many groups may start sampling now, >= 0. Never more than the run's remaining steps can use.

    Two limits apply: `pipeline_depth` groups may run at once, and after `pushes` pushes at most
    (max_lag + pushes + 1) x groups_per_push uses are planned, because later ones would be too stale. `pushes` is the
    push count of the weights that sample the group, so what counts is the lag that it will have when its turn comes: a
    sampler with older weights stops earlier. If every pair is trained on once, the number is

        min(pipeline_depth - running, (max_lag + pushes + 1) x groups_per_push - (accepted + running))

    with accepted = ready + training + trained. If a pair is trained on m = `max_times_trained` > 1 times, every running
    group and every new one counts as m uses.

    The pairs of one step must be distinct, so enough of them for one step are always admitted; otherwise sampler and
    learner would deadlock. Tied, failed and expired groups count in none of the sums, so others may replace them.
    """
    unspent = min((bounds.max_lag + pushes + 1) * bounds.groups_per_push, bounds.total) - load.spent
    room = -(-(unspent - load.left - bounds.max_times_trained * load.running) // bounds.max_times_trained)
    if unspent >= bounds.batch_size:
        room = max(room, bounds.batch_size - load.live - load.running)
    return max(0, int(min(bounds.pipeline_depth - load.running, room)))


def lag(pushes_now: int, pushes_then: int) -> int:
    """Pushes since a group was sampled. A rollback can make the difference negative; then 0."""
    return max(0, pushes_now - pushes_then)


def is_stale(pair_lag: int, max_lag: int) -> bool:
    """Whether a pair is too off-policy to train on; lags are in pushes."""
    return pair_lag > max_lag


def outlives_a_push(pushes_now: int, pushes_then: int, max_lag: int) -> bool:
    """Whether a group may still be trained on after one more push.

    The learner does not push before a group under way for which this is false: it waits for the group's last clips
    rather than let them expire.
    """
    return not is_stale(lag(pushes_now + 1, pushes_then), max_lag)


def freshness(pair_lag: int) -> float:
    """1 / (1 + lag): 1 for a pair of the current push."""
    return 1.0 / (1.0 + pair_lag)


@dataclass(frozen=True, slots=True)
class QueuedGroup:
    """A group that waits for training: what `next_batch` needs of it."""

    ordinal: int
    times_trained: int
    priority: float
    lag: int


def next_batch(queue: Sequence[QueuedGroup], count: int, order: str) -> list[int]:
    """The ordinals of the next `count` groups; empty if fewer are queued.

    `fifo`: least used first, then oldest. `priority`: largest weight x freshness first, then least used, then oldest.
    """
    if len(queue) < count:
        return []
    if order == "priority":
        ranked = sorted(
            queue, key=lambda pair: (-pair.priority * freshness(pair.lag), pair.times_trained, pair.ordinal)
        )
    else:
        ranked = sorted(queue, key=lambda pair: (pair.times_trained, pair.ordinal))
    return [pair.ordinal for pair in ranked[:count]]


def oldest_resumable_step(checkpoints: Sequence[int], kept: int) -> int:
    """The step of the oldest of the `kept` newest checkpoints, the earliest to resume from; 0 if there are fewer."""
    ordered = sorted(checkpoints)
    return ordered[-kept] if len(ordered) >= kept else 0


def disk_has_room(used: int, largest_group: int, sampling: int, bound: int) -> bool:
    """Whether one more group fits on disk. `used` bytes of blobs are stored, `sampling` groups are being sampled, and
    each may grow to `largest_group` bytes. The first group always fits."""
    return used == 0 or used + largest_group * (sampling + 1) <= bound
