"""Messages as bytes: a msgpack header and raw blob frames. There is no pickle, and nothing is trusted.

```
frame 0    msgpack {"schema": 1, "id": 17, ..., "blobs": [12288, 4051]}
frame 1    12288 bytes: the first `bytes` of the message, as it is
frame 2     4051 bytes: the second
```

Dataclasses become maps, tuples and lists become arrays, and `bytes` become the number of a frame, so a clip or a
tensor is never copied into the header. Reading is led by the annotations of `common/messages.py`: a field that is
missing, unknown or of another type is a `WireError` that names it. An `SerializedTensor` checks its own length against
dtype and shape before a tensor is made of it.

Of msgpack, only what our messages need is read: no extension types, keys that are text (numbers are written as such),
lists and maps of at most `MAX_ITEMS`. So a header costs at most some 250 MiB while it is looked at, whatever it says.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from reprlib import Repr
from typing import Any, NoReturn, Union

import msgpack

from common.messages import SCHEMA_VERSION

MAX_HEADER = 4 << 20  # bytes; a thousand prompts' worth
MAX_BLOBS = 4096  # frames after the header
MAX_ITEMS = 1 << 14  # of one list or map
SHOWN = Repr()  # repr() of what a stranger nested a thousand deep is a RecursionError
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 60


class WireError(ValueError):
    """A message that is none: what is wrong, and where in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a message may be before any of it is looked at."""

    blob: int = 1 << 30  # bytes of one frame
    total: int = 4 << 30  # bytes of all frames


LIMITS = Limits()


def pack(header: Mapping[str, Any], body: Any = None) -> list[bytes]:
    """The frames of a message: `header` (plain values) and `body` (anything `unpack` has a type for)."""
    blobs: list[bytes] = []
    plain = _plain(body, blobs)
    whole = {"schema": SCHEMA_VERSION, **header, "body": plain, "blobs": [len(blob) for blob in blobs]}
    return [bytes(msgpack.packb(whole) or b""), *blobs]


def _plain(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, bytes | memoryview):
        blobs.append(value)  # type: ignore[arg-type]  # of memory as it lies, no copy
        return len(blobs) - 1
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), blobs) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(_plain(key, blobs)): _plain(item, blobs) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item, blobs) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Frames:
    """A message whose frame is sound; its body has yet to be given a type (`read`)."""

    header: dict[str, Any]
    blobs: list[bytes]

    def read(self, kind: Any, where: str = "body") -> Any:
        """The body as a value of `kind`, an annotation. `WireError` names the first place that does not fit."""
        return _value(kind, self.header.get("body"), self.blobs, where)

    def read_list(self, kinds: Sequence[Any], where: str, names: Sequence[str]) -> list[Any]:
        """The body as a list of values, each of its own kind; `names` stand in errors."""
        plain = self.header.get("body")
        if not isinstance(plain, list) or len(plain) != len(kinds):
            raise WireError(f"{where}: {len(kinds)} arguments are needed ({', '.join(names)}), not {_shown(plain)}")
        each = zip(kinds, plain, names, strict=True)
        return [_value(kind, item, self.blobs, f"{where}.{name}") for kind, item, name in each]


def unpack(frames: Sequence[bytes], limits: Limits = LIMITS) -> Frames:
    """Check a message's frame: sizes, schema version, and that header and blobs agree."""
    if not frames:
        raise WireError("an empty message")
    header, blobs = frames[0], list(frames[1:])
    if len(header) > MAX_HEADER:
        raise WireError(f"a header of {len(header)} bytes; allowed are {MAX_HEADER}")
    if len(blobs) > MAX_BLOBS or sum(map(len, blobs)) > limits.total or any(len(b) > limits.blob for b in blobs):
        raise WireError(
            f"{len(blobs)} blobs of {sum(map(len, blobs))} bytes; allowed are {MAX_BLOBS} of {limits.blob} each, "
            f"{limits.total} in all"
        )
    try:
        found = msgpack.unpackb(
            header, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0, ext_hook=_no_extension
        )
    except Exception as error:  # msgpack raises many kinds, some of them bare ValueErrors
        raise WireError(f"a header that is no msgpack: {error}") from None
    if not isinstance(found, dict):
        raise WireError(f"a header that is no map but a {type(found).__name__}")
    if found.get("schema") != SCHEMA_VERSION:
        raise WireError(f"schema {_shown(found.get('schema'))}; this program speaks {SCHEMA_VERSION}")
    if found.get("blobs") != [len(blob) for blob in blobs]:
        sizes = _shown([len(blob) for blob in blobs])
        raise WireError(f"blobs of {sizes} bytes, the header says {_shown(found.get('blobs'))}")
    return Frames(found, blobs)


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


def _value(kind: Any, plain: Any, blobs: list[bytes], where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _optional(inner, plain, blobs, where)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(inner, plain, blobs, where)
    if origin is not None and issubclass(origin, Sequence):
        return _sequence(origin, inner, plain, blobs, where)
    if is_dataclass(kind):
        return _dataclass(kind, plain, blobs, where)
    if kind is bytes:
        return _blob(plain, blobs, where)
    return _scalar(kind, plain, where)


def _optional(kinds: tuple[Any, ...], plain: Any, blobs: list[bytes], where: str) -> Any:
    (kind,) = (one for one in kinds if one is not type(None))  # the messages know no other unions
    return None if plain is None else _value(kind, plain, blobs, where)


def _mapping(inner: tuple[Any, ...], plain: Any, blobs: list[bytes], where: str) -> dict[Any, Any]:
    if not isinstance(plain, dict):
        raise _unfit(where, "a map", plain)
    key_kind, kind = inner
    return {
        _key(key_kind, key, f"{where} key"): _value(kind, item, blobs, f"{where}[{key!r:.60}]")
        for key, item in plain.items()
    }


def _key(kind: Any, key: str | bytes, where: str) -> Any:
    if kind is int and isinstance(key, str) and re.fullmatch("-?[0-9]{1,20}", key):
        return int(key)
    return _scalar(kind, key, where)


def _sequence(origin: Any, inner: tuple[Any, ...], plain: Any, blobs: list[bytes], where: str) -> Any:
    if not isinstance(plain, list):
        raise _unfit(where, "a list", plain)
    values = [_value(inner[0], item, blobs, f"{where}[{place}]") for place, item in enumerate(plain)]
    return tuple(values) if origin is tuple else values


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass(kind: Any, plain: Any, blobs: list[bytes], where: str) -> Any:
    if not isinstance(plain, dict):
        raise _unfit(where, kind.__name__, plain)
    hints = _hints(kind)
    for name in plain.keys() - hints.keys():
        raise WireError(f"{where}: {kind.__name__} has no field {name!r:.60}")
    for field in fields(kind):
        if field.name not in plain and field.default is MISSING and field.default_factory is MISSING:
            raise WireError(f"{where}: {kind.__name__} without {field.name}")
    values = {name: _value(hints[name], item, blobs, f"{where}.{name}") for name, item in plain.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise WireError(f"{where}: {error!s:.200}") from None


def _blob(plain: Any, blobs: list[bytes], where: str) -> bytes:
    if type(plain) is not int or not 0 <= plain < len(blobs):
        raise _unfit(where, f"the number of one of {len(blobs)} blobs", plain)
    return blobs[plain]


def _scalar(kind: Any, plain: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        found = next((one for one in kind if type(plain) is str and one.value == plain), None)
        if found is None:
            raise _unfit(where, f"one of {', '.join(str(one.value) for one in kind)}", plain)
        return found
    if kind is float and type(plain) is int:
        return float(plain)
    if kind is None or kind is type(None):
        if plain is not None:
            raise _unfit(where, "nothing", plain)
        return None
    if type(plain) is not kind:
        raise _unfit(where, f"{kind.__name__}", plain)
    return plain


def _unfit(where: str, wanted: str, found: Any) -> WireError:
    return WireError(f"{where}: {wanted} is needed, not {_shown(found)}")


def _shown(value: Any) -> str:
    """A short picture of anything."""
    return f"{SHOWN.repr(value):.60}"
