"""Digests: the published function, and every bit counts."""

from __future__ import annotations

import pytest

from common.digests import DIGITS, Digest, digest


def test_it_is_xxh3_with_128_bits() -> None:
    """The value of no bytes that XXH3's specification gives."""
    assert digest() == digest(b"") == "99aa06d3014798d86001c324468d497f"


def test_parts_are_as_one() -> None:
    whole = Digest(b"ab" + bytes(5_000_000)).hexdigest()
    assert digest(b"a", memoryview(b"b"), bytes(5_000_000)) == whole
    assert len(whole) == DIGITS


@pytest.mark.parametrize("size", [1, 17, 129, 241, 100_000])
def test_every_bit_counts(size: int) -> None:
    """The function works differently at each of these lengths; one flipped bit anywhere shows."""
    data = bytearray(index % 251 for index in range(size))
    seen = {digest(data)}
    bits = range(0, 8 * size, max(1, size // 20))
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        seen.add(digest(data))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 1 + len(bits)
