"""The seeds of candidates. The exchange, evaluations and benchmarks draw from here, so that clips can be reproduced."""

from __future__ import annotations

from hashlib import blake2b


def candidate_seed(run_seed: int, purpose: str, ordinal: int, index: int) -> int:
    """The seed of one candidate, 0 .. 2^63 - 1. It depends on the arguments only."""
    text = f"{run_seed}|{purpose}|{ordinal}|{index}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1
