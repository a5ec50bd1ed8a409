"""The coding of differences: exact for any bytes, small for bfloat16 that moved by units, and never silently wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CorruptDataError
from common.weights import delta
from common.weights.delta import decode, decode_block, encode, encode_block


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "BLOCK", 64)


def pair(words: int, moved: float, farther: float = 0.0) -> tuple[bytes, bytes]:
    """A new and an old block; `moved` of the words by one unit, `farther` of them by anything."""
    rng = np.random.default_rng(words)
    old = rng.integers(0, 1 << 16, words, np.uint16)
    new = old + (rng.random(words) < moved) * rng.choice(np.array([1, 0xFFFF], np.uint16), words)
    new = np.where(rng.random(words) < farther, rng.integers(0, 1 << 16, words, np.uint16), new)
    return new.astype(np.uint16).tobytes(), old.tobytes()


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.sampled_from(b"\0\0\0\1\2\xff\x80"))))
def test_any_block_comes_back(pairs: list[tuple[bytes, int]]) -> None:
    old = b"".join(one for one, _ in pairs)
    new = bytes((one[0] + step) % 256 for one, step in pairs)
    assert bytes(decode_block(encode_block(new, old), old)) == new


@pytest.mark.parametrize(("moved", "farther", "share"), [(0.2, 0.0, 0.06), (0.04, 0.0, 0.025), (0.2, 0.05, 0.14)])
def test_a_few_units_cost_a_few_bits(moved: float, farther: float, share: float) -> None:
    new, old = pair(1 << 16, moved, farther)
    coded = encode_block(new, old)
    assert bytes(decode_block(coded, old)) == new
    assert len(coded) < share * len(new)


def test_an_unchanged_block_costs_nothing() -> None:
    assert encode_block(b"12345", b"12345") == b""
    assert decode_block(b"", b"12345") == b"12345"


def coded(new: bytes, old: bytes) -> bytes:
    """The coded form of a file."""
    return b"".join(block for _, block in encode(memoryview(new), memoryview(old)))


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 1001])
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_file_comes_back_from_chunks_of_any_size(length: int, size: int) -> None:
    new, old = (data[:length] for data in pair(600, 0.3, 0.1))
    assert b"".join(decode(chunks(coded(new, old), size), memoryview(old))) == new


def test_the_bytes_that_are_done_grow_to_the_whole_file() -> None:
    new, old = pair(100, 0.3)
    assert [done for done, _ in encode(memoryview(new), memoryview(old))] == [64, 128, 192, 200]


def test_files_of_different_sizes_have_no_difference() -> None:
    with pytest.raises(ValueError, match="files of 8 and 9 bytes"):
        coded(bytes(8), bytes(9))


def test_damage_is_found() -> None:
    new, old = pair(600, 0.3, 0.1)
    whole = coded(new, old)
    for broken in (whole[:-1], whole[:2], whole + b"x", b"\xff" * 4 + whole, whole[4:]):
        with pytest.raises(CorruptDataError, match="a broken"):
            b"".join(decode([broken], memoryview(old)))


@given(st.binary(min_size=1, max_size=80))
def test_any_other_bytes_are_refused_or_make_a_block_of_the_right_size(data: bytes) -> None:
    """What they make is then compared with the digests of the version."""
    try:
        found = decode_block(data, bytes(range(60)))
    except CorruptDataError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are allowed
    else:
        assert len(found) == 60
