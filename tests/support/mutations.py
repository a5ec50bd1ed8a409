"""Tampered messages for fuzzing, drawn from a seed: `mutated(frames, random)`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgpack

Frames = list[bytes]
MARK = "here"
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(float("nan"), float("inf"), -float("inf"), 1e308, 0.5),
    *("", "x" * 3000, "../../../../tmp/douga-was-here", "a\0b", "\x1b[2J\n\r", "\u202e", "🦊", "__class__"),
    *(b"", b"\xff" * 50, [], {}, [[]], [None] * 300, {"": None}, {"a": {"b": {"c": []}}}, list(range(300))),
    *(msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2)),
]


def mutated(frames: Sequence[bytes], random: Random) -> Frames:
    """A copy of the message `frames` with one to three random mutations."""
    found = list(frames)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = random.choice(KINDS)(found, random)
    return found


def _frame(frames: Frames, random: Random) -> int:
    return random.randrange(len(frames)) if random.random() < 0.3 else 0


def _replaced(frames: Frames, place: int, data: bytes) -> Frames:
    return [*frames[:place], data, *frames[place + 1 :]]


# Mutations of bytes and frames.


def flip(frames: Frames, random: Random) -> Frames:
    """Flip some bits."""
    place = _frame(frames, random)
    data = bytearray(frames[place])
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return _replaced(frames, place, bytes(data))


def cut(frames: Frames, random: Random) -> Frames:
    """Truncate or extend a frame."""
    place = _frame(frames, random)
    data = frames[place]
    longer = data + random.randbytes(random.randrange(1, 40))
    return _replaced(frames, place, random.choice((data[: random.randrange(len(data) + 1)], longer)))


def shuffle(frames: Frames, random: Random) -> Frames:
    """Swap, drop, duplicate or multiply frames."""
    more = [b""] * random.choice((1, 3, 50))
    return random.choice((frames[::-1], frames[:-1] or [b""], [*frames, frames[-1]], [*frames, *more], [b"", *frames]))


def noise(frames: Frames, random: Random) -> Frames:
    """Replace the header with noise."""
    return [random.randbytes(random.randrange(200)), *frames[1:]]


def declare(frames: Frames, random: Random) -> Frames:
    """Declare a container in the header that is larger than the data."""
    sizes = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
    sizes += [b"\xdc\x3f\xff", b"\xde\x3f\xff", b"\xc9\xff\xff\xff\xff\x01"]
    data, place = frames[0], random.randrange(len(frames[0]) + 1)
    return [data[:place] + random.choice(sizes) * random.choice((1, 1, 40)) + data[place:], *frames[1:]]


# Mutations of the header's content.


def _header(change: Callable[[dict[Any, Any], Random], None]) -> Callable[[Frames, Random], Frames]:
    def kind(frames: Frames, random: Random) -> Frames:
        try:
            header = msgpack.unpackb(frames[0], strict_map_key=False)
            change(header, random)
            return [msgpack.packb(header), *frames[1:]]
        except Exception:  # an earlier mutation left no header to change
            return flip(frames, random)

    return kind


def _odd(random: Random) -> Any:
    if random.random() < 0.1:
        return nested(random.choice((10, 100, 480)))
    return random.choice(ODD)


def nested(depth: int) -> Any:
    """Lists in lists, or maps in maps."""
    value: Any = None
    for place in range(depth):
        value = [value] if depth % 2 or place % 2 else {"body": value}
    return value


def deepen(frames: Frames, random: Random) -> Frames:
    """Replace a value with nested lists or maps, nearly as deep as msgpack accepts."""
    (header, *blobs), depth = _marked(frames, random), random.randrange(900, 1023)
    level = random.choice((b"\x91", b"\x81\xa1a"))
    return [header.replace(msgpack.packb(MARK), level * depth + b"\xc0"), *blobs]


@_header
def _marked(header: dict[Any, Any], random: Random) -> None:
    holder, key = _place(header, random)
    holder[key] = MARK


def _place(header: dict[Any, Any], random: Random) -> tuple[Any, Any]:
    """A random container in a message, and one of its keys."""
    holder: Any = header
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = "body" if holder is header and random.random() < 0.8 else random.choice(list(keys))
        if not isinstance(holder[key], dict | list) or not holder[key] or random.random() < 0.2:
            return holder, key
        holder = holder[key]


@_header
def any_value(header: dict[Any, Any], random: Random) -> None:
    """Replace a value at any depth."""
    holder, key = _place(header, random)
    match random.randrange(6):
        case 0:
            holder.pop(key)
        case 1 if isinstance(holder, dict):
            holder[random.choice(("more", "", "id", b"key", "x" * 500))] = _odd(random)
        case 1:
            holder.extend([_odd(random)] * random.choice((1, 20)))
        case _:
            holder[key] = _odd(random)


@_header
def envelope(header: dict[Any, Any], random: Random) -> None:
    """Change schema, client, id, call or sizes."""
    key = random.choice(("schema", "client", "id", "call", "blobs", "body", "error", "message"))
    if random.random() < 0.3:
        header.pop(key, None)
    else:
        header[key] = _odd(random)


@_header
def replay(header: dict[Any, Any], random: Random) -> None:
    """Use an earlier or a later id."""
    header["client"], header["id"] = f"replayed-{random.randrange(3)}", random.randrange(5)


@_header
def miscount(header: dict[Any, Any], random: Random) -> None:
    """Make the blob sizes slightly wrong."""
    sizes = header["blobs"]
    sizes[random.randrange(len(sizes))] += random.choice((-1, 1, 2**40))


@_header
def other_call(header: dict[Any, Any], random: Random) -> None:
    """Send one call's arguments to another call."""
    header["call"] = random.choice(("lease_sampling", "announce", "submit_scores", "chunk", "span", "close", "_target"))


KINDS = (
    flip,
    cut,
    shuffle,
    noise,
    declare,
    deepen,
    any_value,
    any_value,
    any_value,
    envelope,
    replay,
    miscount,
    other_call,
)


def bombs() -> list[Frames]:
    """Small messages that are expensive to decode; send each only a few times."""
    half = 1 << 14
    full = b"\xdc" + struct.pack(">H", half - 1)
    tail = b"\xa4body"
    declared = b"\x81" + tail + full * 1000  # a thousand nested lists, whose items are missing
    maps = b"\x81" + tail + b"\xdc\x00\x40" + (full + b"\x81\xa0\xc0" * (half - 1)) * 64
    stamps = b"".join(b"\xc7\x0c\xff" + struct.pack(">Iq", place, -place) + b"\xc0" for place in range(9000))
    return [
        [declared],
        [maps],
        [b"\xde" + struct.pack(">H", 9000) + stamps],
        [b"\x91" * (4 << 20)],  # deep
        [b"\x81" + tail + b"\x91" * 900 + b"\xc0"],
        [bytes(5 << 20)],  # a header beyond the limit
        [msgpack.packb({"schema": 1, "blobs": [0] * 5000}), *[b""] * 5000],
        [msgpack.packb({"schema": 1, "client": "x" * (3 << 20), "id": 1, "call": "next_version", "blobs": []})],
        [msgpack.packb({"schema": 1, "client": "c", "id": 1, "call": "y" * (3 << 20), "blobs": []})],
        [msgpack.packb({"schema": "z" * (3 << 20), "blobs": []})],
    ]
