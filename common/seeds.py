"""Seeds of candidates and orders of epochs: all are functions of the run's seed, so that clips can be reproduced."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b


def candidate_seed(run_seed: int, purpose: str, ordinal: int, index: int) -> int:
    """The seed of one candidate, 0 .. 2^63 - 1. It depends on the arguments only."""
    text = f"{run_seed}|{purpose}|{ordinal}|{index}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order in which `count` items are used in an epoch: a permutation of 0 .. count-1."""
    import numpy as np  # noqa: PLC0415 - keeps `douga --help` fast

    return tuple(int(i) for i in np.random.default_rng((seed, epoch)).permutation(count))
