"""The wire format: a msgpack header followed by raw blob frames. There is no pickle; all input is untrusted.

```
frame 0    msgpack {"schema": 1, "id": 17, ..., "blobs": [12288, 4051]}
frame 1    12288 bytes: the first `bytes` value of the message
frame 2     4051 bytes: the second
```

Dataclasses are encoded as maps, tuples and lists as arrays, and `bytes` as the index of a frame, so that a clip or a
tensor is never copied into the header. Decoding follows the annotations in `common/messages.py`: a field that is
missing, unknown or of another type is a `WireError` that names it. A `SerializedTensor` checks its length against
dtype and shape before it becomes a tensor.

Only the part of msgpack that the messages need is accepted: no extension types, text keys (integer keys are written as
text), lists and maps of at most `MAX_ITEMS` items. So decoding any header takes at most about 250 MiB.
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

MAX_HEADER = 4 << 20  # bytes; enough for a thousand prompts
MAX_BLOBS = 4096  # frames after the header
MAX_ITEMS = 1 << 14  # per list or map
SAFE_REPR = Repr()  # plain repr() of deeply nested hostile input raises RecursionError
SAFE_REPR.maxstring = SAFE_REPR.maxother = SAFE_REPR.maxlong = 60


class WireError(ValueError):
    """Malformed message; says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum message size, checked before anything is decoded."""

    blob: int = 1 << 30  # bytes of one frame
    total: int = 4 << 30  # bytes of all frames


LIMITS = Limits()


def pack(header: Mapping[str, Any], body: Any = None) -> list[bytes]:
    """Encode a message as frames. `header` holds plain values; `body` may be any type that `Frames.read` can decode."""
    blobs: list[bytes] = []
    plain = _plain(body, blobs)
    whole = {"schema": SCHEMA_VERSION, **header, "body": plain, "blobs": [len(blob) for blob in blobs]}
    return [bytes(msgpack.packb(whole) or b""), *blobs]


def _plain(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, bytes | memoryview):
        blobs.append(value)  # type: ignore[arg-type]  # no copy
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
    """A message with a valid header. Its body is still untyped; `read` decodes it."""

    header: dict[str, Any]
    blobs: list[bytes]

    def read(self, kind: Any, where: str = "body") -> Any:
        """Decode the body as a value of `kind`, a type annotation. `WireError` names the first field that differs."""
        return _value(kind, self.header.get("body"), self.blobs, where)

    def read_list(self, kinds: Sequence[Any], where: str, names: Sequence[str]) -> list[Any]:
        """Decode the body as a list with one type per item. `names` are the items' names in errors."""
        plain = self.header.get("body")
        if not isinstance(plain, list) or len(plain) != len(kinds):
            raise WireError(f"{where}: expected {len(kinds)} arguments ({', '.join(names)}), got {_shown(plain)}")
        each = zip(kinds, plain, names, strict=True)
        return [_value(kind, item, self.blobs, f"{where}.{name}") for kind, item, name in each]


def unpack(frames: Sequence[bytes], limits: Limits = LIMITS) -> Frames:
    """Decode the header. Checks sizes, schema version, and that the header lists the blobs that came."""
    if not frames:
        raise WireError("an empty message")
    header, blobs = frames[0], list(frames[1:])
    if len(header) > MAX_HEADER:
        raise WireError(f"a header of {len(header)} bytes; at most {MAX_HEADER} are allowed")
    if len(blobs) > MAX_BLOBS or sum(map(len, blobs)) > limits.total or any(len(b) > limits.blob for b in blobs):
        raise WireError(
            f"{len(blobs)} blobs of {sum(map(len, blobs))} bytes in total; at most {MAX_BLOBS} blobs of {limits.blob} "
            f"bytes each and {limits.total} in total are allowed"
        )
    try:
        found = msgpack.unpackb(
            header, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0, ext_hook=_no_extension
        )
    except Exception as error:  # msgpack raises many exception types, some of them bare ValueErrors
        raise WireError(f"the header is not valid msgpack: {error}") from None
    if not isinstance(found, dict):
        raise WireError(f"the header is a {type(found).__name__}, not a map")
    if found.get("schema") != SCHEMA_VERSION:
        raise WireError(f"schema {_shown(found.get('schema'))}; this program uses schema {SCHEMA_VERSION}")
    if found.get("blobs") != [len(blob) for blob in blobs]:
        sizes = _shown([len(blob) for blob in blobs])
        raise WireError(f"blobs of {sizes} bytes, but the header says {_shown(found.get('blobs'))}")
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
    (kind,) = (one for one in kinds if one is not type(None))  # messages use no other unions than `X | None`
    return None if plain is None else _value(kind, plain, blobs, where)


def _mapping(inner: tuple[Any, ...], plain: Any, blobs: list[bytes], where: str) -> dict[Any, Any]:
    if not isinstance(plain, dict):
        raise _mismatch(where, "a map", plain)
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
        raise _mismatch(where, "a list", plain)
    values = [_value(inner[0], item, blobs, f"{where}[{place}]") for place, item in enumerate(plain)]
    return tuple(values) if origin is tuple else values


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass(kind: Any, plain: Any, blobs: list[bytes], where: str) -> Any:
    if not isinstance(plain, dict):
        raise _mismatch(where, kind.__name__, plain)
    hints = _hints(kind)
    for name in plain.keys() - hints.keys():
        raise WireError(f"{where}: {kind.__name__} has no field {name!r:.60}")
    for field in fields(kind):
        if field.name not in plain and field.default is MISSING and field.default_factory is MISSING:
            raise WireError(f"{where}: {kind.__name__} without its field {field.name!r}")
    values = {name: _value(hints[name], item, blobs, f"{where}.{name}") for name, item in plain.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise WireError(f"{where}: {error!s:.200}") from None


def _blob(plain: Any, blobs: list[bytes], where: str) -> bytes:
    if type(plain) is not int or not 0 <= plain < len(blobs):
        raise _mismatch(where, f"the index of one of {len(blobs)} blobs", plain)
    return blobs[plain]


def _scalar(kind: Any, plain: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        found = next((one for one in kind if type(plain) is str and one.value == plain), None)
        if found is None:
            raise _mismatch(where, f"one of {', '.join(str(one.value) for one in kind)}", plain)
        return found
    if kind is float and type(plain) is int:
        return float(plain)
    if kind is None or kind is type(None):
        if plain is not None:
            raise _mismatch(where, "nothing", plain)
        return None
    if type(plain) is not kind:
        raise _mismatch(where, f"{kind.__name__}", plain)
    return plain


def _mismatch(where: str, expected: str, found: Any) -> WireError:
    return WireError(f"{where}: expected {expected}, got {_shown(found)}")


def _shown(value: Any) -> str:
    """A short repr of any value; safe for deeply nested input."""
    return f"{SAFE_REPR.repr(value):.60}"
