"""The rules of the exchange, as pure functions: admission, staleness, order, transitions, seeds.

No input or output, no clock, no database: what is decided here follows from the arguments alone, which is why a run
that was killed and resumed decides the same things as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf

from common.exchange.api import State

# From -> to. Backward edges: a lost lease (sampling, scoring, training), a rollback (trained, expired).
# `paired -> trained` is a commit whose lease ran out during the step, or a pair too stale to be used once more;
# `expired -> trained` is a commit whose pairs even expired during the step. `done -> sampled`: a probe is scored anew;
# `pending -> failed`: a probe is retired before it was sampled.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.SAMPLING, State.FAILED}),
    State.SAMPLING: frozenset({State.SAMPLED, State.PENDING, State.FAILED}),
    State.SAMPLED: frozenset({State.SCORING}),
    State.SCORING: frozenset({State.SAMPLED, State.PAIRED, State.TIED, State.DONE, State.FAILED}),
    State.PAIRED: frozenset({State.TRAINING, State.EXPIRED, State.TRAINED}),
    State.TRAINING: frozenset({State.PAIRED, State.TRAINED}),
    State.TRAINED: frozenset({State.PAIRED}),
    State.EXPIRED: frozenset({State.PAIRED, State.TRAINED}),
    State.TIED: frozenset(),
    State.FAILED: frozenset(),
    State.DONE: frozenset({State.SAMPLED}),
}
RUNNING = frozenset({State.SAMPLING, State.SAMPLED, State.SCORING})
LIVE = frozenset({State.PAIRED, State.TRAINING})


def allowed(old: State, new: State) -> bool:
    """Whether a group may go from `old` to `new`."""
    return new in TRANSITIONS[old]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The configured side of admission."""

    pipeline_depth: int  # groups that may be running at once
    max_lag: int  # pushes
    pairs_per_step: int
    pairs_per_push: int  # B
    times_trained: int = 1  # m, uses of one pair
    total: float = inf  # uses the whole run has room for: beyond its last step nothing is sampled


@dataclass(frozen=True, slots=True)
class Load:
    """The training groups in the ledger now."""

    running: int  # sampling + sampled + scoring
    live: int  # paired + training
    left: int  # uses the live pairs have left: m each, less those committed
    spent: int  # uses committed, in the current lineage


def capacity(bounds: Bounds, load: Load, pushes: int) -> int:
    """How many groups may start sampling now, >= 0; none beyond what the run's last step takes.

    With m = 1 this is min(depth - running, (max_lag + pushes + 1) B - (accepted + running)), accepted = paired +
    training + trained. With m > 1 a pair stands for m uses, and the bound counts uses; but as the pairs of one step
    are distinct, there is always leave for as many as one step takes, or both sides would wait for ever.
    Ties, failures and expired pairs are in none of the sums, so they give their place back by themselves.
    """
    unspent = min((bounds.max_lag + pushes + 1) * bounds.pairs_per_push, bounds.total) - load.spent
    room = -(-(unspent - load.left - bounds.times_trained * load.running) // bounds.times_trained)
    if unspent >= bounds.pairs_per_step:
        room = max(room, bounds.pairs_per_step - load.live - load.running)
    return max(0, int(min(bounds.pipeline_depth - load.running, room)))


def lag(pushes_now: int, pushes_then: int) -> int:
    """Pushes since a group was sampled; 0 when a rollback made it negative."""
    return max(0, pushes_now - pushes_then)


def is_stale(pair_lag: int, max_lag: int) -> bool:
    """Whether a pair is too old to be trained."""
    return pair_lag > max_lag


def waited_out(waited: float, ttl: float) -> bool:
    """Whether a pair has waited in the queue for longer than `ttl` seconds; never when `ttl` is 0."""
    return 0 < ttl < waited


def freshness(pair_lag: int) -> float:
    """1 for a pair of the current push, falling as 1 / (1 + lag)."""
    return 1.0 / (1.0 + pair_lag)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A selected group in the queue, as `select` sees it."""

    ordinal: int
    uses: int
    priority: float
    lag: int


def select(queue: Sequence[Waiting], count: int, order: str) -> list[int]:
    """The ordinals of the next `count` groups, or none when there are fewer.

    `fifo`: least used first, then oldest. `priority`: largest weight x freshness first, then least used, then oldest.
    """
    if len(queue) < count:
        return []
    if order == "priority":
        ranked = sorted(queue, key=lambda pair: (-pair.priority * freshness(pair.lag), pair.uses, pair.ordinal))
    else:
        ranked = sorted(queue, key=lambda pair: (pair.uses, pair.ordinal))
    return [pair.ordinal for pair in ranked[:count]]


def final_step(marks: Sequence[int], kept: int) -> int:
    """The step no resume can go behind: that of the oldest checkpoint kept; 0 while fewer were written."""
    ordered = sorted(marks)
    return ordered[-kept] if len(ordered) >= kept else 0


def disk_has_room(used: int, largest_group: int, sampling: int, bound: int) -> bool:
    """Whether one more group fits beside what is stored and what the groups being sampled may still write (bytes)."""
    return used == 0 or used + largest_group * (sampling + 1) <= bound


def seed(run_seed: int, purpose: str, ordinal: int, index: int) -> int:
    """The seed of one candidate, 0 .. 2^63 - 1: a function of its place in the run alone."""
    text = f"{run_seed}|{purpose}|{ordinal}|{index}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1
