"""The difference between two weight files of equal layout, bit for bit, and small for a bfloat16 model in training.

A file is a row of 16-bit words. Most words of a bfloat16 model do not change between two versions, and most others
change by one unit, for AdamW moves a weight by about its learning rate:

```
word - old word (mod 2^16)    -1, 0, +1 ──> codes 0, 1, 2; anything else ──> code 3, and the difference itself
4 codes ──> 1 byte            codes, then low and high bytes of the other differences ──> Huffman (deflate, no matches)
```

The coded form of a file is its blocks in order, each behind its length (4 bytes, little-endian). An unchanged block is
empty. The words of other dtypes are coded in the same way, correctly but to no avail: those of float32 all change.

Bit planes with zstd need a fifth more bytes. zstd in the place of deflate's Huffman code needs as many, and would save
half of the time, but be another dependency.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np

from common.errors import CorruptDataError

Buffer: TypeAlias = bytes | memoryview
Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK = 1 << 20  # bytes of a file that are coded at a time: a multiple of 8 that fits into a core's cache
THREADS = min(8, len(os.sched_getaffinity(0)))  # that code or decode the blocks of one file
AHEAD = 2 * THREADS  # blocks in memory
LENGTH = 4  # bytes of a block's length
FAR = 3  # the code of a word that moved by more than one unit
CODES = np.arange(256, dtype=np.uint32)
CODES = CODES & 3 | (CODES >> 2 & 3) << 8 | (CODES >> 4 & 3) << 16 | CODES >> 6 << 24  # byte -> four codes, a byte each


def encode_block(new: Buffer, old: Buffer) -> bytes:
    """The difference between two blocks of equal size. Empty if they are equal."""
    steps = _words(new) - _words(old)
    if not steps.any():
        return b""
    steps += np.uint16(1)
    codes = np.minimum(steps, np.uint16(FAR)).astype(np.uint8)
    far = np.compress(codes == FAR, steps)
    four = codes.view(np.uint32)
    four |= four >> np.uint32(6)
    four |= four >> np.uint32(12)
    folded = (far << np.uint16(1)) ^ np.where(far >> np.uint16(15), np.uint16(0xFFFF), np.uint16(0))  # small if near 0
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    parts = (four.astype(np.uint8), folded.astype(np.uint8), (folded >> np.uint16(8)).astype(np.uint8))
    return b"".join([*(coder.compress(part.data) for part in parts), coder.flush()])


def decode_block(coded: Buffer, old: Buffer) -> Buffer:
    """The new block. Raises `CorruptDataError` if `coded` is no difference from a block like `old`."""
    if not coded:
        return old
    before = _words(old)
    count = len(before) // 4
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = np.frombuffer(inflating.decompress(coded, 9 * count + 1), np.uint8)  # 9: all words are far
    except zlib.error as error:
        raise CorruptDataError(f"a broken block of a delta: {error}") from None
    codes = CODES.take(data[:count]).view(np.uint8)
    is_far = codes == FAR
    far = np.count_nonzero(is_far)
    if len(codes) != 4 * count or len(data) != count + 2 * far:
        raise CorruptDataError(f"a broken block of a delta: {len(data)} bytes in the place of {count + 2 * far}")
    folded = data[count : count + far] | data[count + far :].astype(np.uint16) << np.uint16(8)
    steps = codes.astype(np.uint16)
    np.place(steps, is_far, (folded >> np.uint16(1)) ^ np.where(folded & np.uint16(1), np.uint16(0xFFFF), np.uint16(0)))
    steps += before
    steps -= np.uint16(1)
    return steps.view(np.uint8).data[: len(old)]


def _words(block: Buffer) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The 16-bit words of a block, with zeros after its end up to a multiple of 8 bytes."""
    rest = -len(block) % 8
    return np.frombuffer(bytes(block) + bytes(rest) if rest else block, np.uint16)


def encode(new: memoryview, old: memoryview) -> Iterator[tuple[int, bytes]]:
    """Code a file block by block, on several threads: bytes of the file so far, and the coded block with its length."""
    if len(new) != len(old):
        raise ValueError(f"files of {len(new)} and {len(old)} bytes")

    def encoded(start: int) -> tuple[int, bytes]:
        coded = encode_block(new[start : start + BLOCK], old[start : start + BLOCK])
        return min(start + BLOCK, len(new)), len(coded).to_bytes(LENGTH, "little") + coded

    return _in_order(encoded, range(0, len(new), BLOCK))


def decode(chunks: Iterable[Buffer], old: memoryview) -> Iterator[Buffer]:
    """The blocks of the new file, from the coded form in `chunks` of any size. Decodes on several threads.

    Raises:
        CorruptDataError: the bytes are no difference from a file like `old`.
    """

    def decoded(pair: tuple[int, Buffer]) -> Buffer:
        start, coded = pair
        return decode_block(coded, old[start : start + BLOCK])

    starts = range(0, len(old), BLOCK)
    return _in_order(decoded, zip(starts, _frames(chunks, len(starts)), strict=True))


def _frames(chunks: Iterable[Buffer], count: int) -> Iterator[Buffer]:
    """Cut `chunks` into `count` coded blocks, without their lengths."""
    buffered, rest = bytearray(), iter(chunks)
    for _ in range(count):
        length = int.from_bytes(_take(buffered, rest, LENGTH), "little")
        if length > 2 * BLOCK:
            raise CorruptDataError(f"a broken delta: a block of {length} bytes")
        yield _take(buffered, rest, length)
    if buffered or any(map(len, rest)):
        raise CorruptDataError("a broken delta: bytes after its last block")


def _take(buffered: bytearray, rest: Iterator[Buffer], count: int) -> bytes:
    while len(buffered) < count:
        chunk = next(rest, None)
        if chunk is None:
            raise CorruptDataError(f"a broken delta: ends {count - len(buffered)} bytes early")
        buffered += chunk
    taken = bytes(buffered[:count])
    del buffered[:count]
    return taken


def _in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """``map(work, items)`` on `THREADS` threads, with at most `AHEAD` results in memory."""
    rest, waiting = iter(items), deque[Future[Result]]()
    with ThreadPoolExecutor(THREADS, "weights-delta") as threads:
        try:
            waiting.extend(threads.submit(work, item) for item in islice(rest, AHEAD))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(threads.submit(work, item) for item in islice(rest, 1))
        finally:
            threads.shutdown(cancel_futures=True)
