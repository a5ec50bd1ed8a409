"""Streaming reader and writer of safetensors files: tensors are written and checked one at a time.

```
8 bytes   length of the header, little-endian
header    {"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, padded with spaces
data      tensor after tensor, in the header's order
```

The header holds names, dtypes and shapes, which are known before the first tensor is computed; they also determine the
order of the tensors. So equal weights give byte-identical files, the same that the `safetensors` library writes, and a
reader with the manifest can check every byte without trusting the file.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.digests import DIGITS, Digest, digest
from common.errors import ConfigError, CorruptDataError
from common.messages import TensorEntry
from common.weights.tensors import dtype_name, tensor_bytes, tensor_entry, whole_digest

# In the order of safetensors files: coarsest alignment first.
CODES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
RANKS = {dtype: rank for rank, dtype in enumerate(CODES)}
NO_DIGEST = "0" * DIGITS  # placeholder of the same length


@dataclass(frozen=True)
class TensorStream:
    """A state dict whose tensors are produced one at a time. `layout` describes them in advance."""

    layout: Sequence[TensorEntry]  # in file order; digests are empty
    tensors: Iterable[tuple[str, torch.Tensor]]  # full tensors in that order; can be iterated once

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> TensorStream:
        """A stream of a state dict in memory."""
        layout = file_order(described(name, tensor, tensor.shape) for name, tensor in state.items())
        return cls(layout, ((entry.name, state[entry.name]) for entry in layout))


def described(name: str, tensor: torch.Tensor, shape: Iterable[int]) -> TensorEntry:
    """The manifest entry of a tensor, without digest. `shape` is the full shape (`tensor` may be a ZeRO shard)."""
    full = torch.Size(shape)
    return TensorEntry(name, dtype_name(tensor), tuple(full), full.numel() * tensor.element_size(), "")


def file_order(layout: Iterable[TensorEntry]) -> list[TensorEntry]:
    """Sort entries in file order. Raises `ConfigError` for a dtype that safetensors cannot store."""
    layout = list(layout)
    for entry in layout:
        if entry.dtype not in CODES:
            raise ConfigError(f"{entry.name}: dtype {entry.dtype!r}; allowed are {', '.join(CODES)}")
    return sorted(layout, key=lambda entry: (RANKS[entry.dtype], entry.name))


def header(layout: Iterable[TensorEntry], digest: str = "") -> bytes:
    """The bytes before the data. `layout` is in file order; a `digest` is stored as metadata."""
    content: dict[str, object] = {"__metadata__": {"digest": digest}} if digest else {}
    end = 0
    for entry in layout:
        start, end = end, end + entry.bytes
        content[entry.name] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(layout: Iterable[TensorEntry]) -> int:
    """Size in bytes of a file without metadata."""
    layout = file_order(layout)
    return len(header(layout)) + sum(entry.bytes for entry in layout)


def write(path: Path, stream: TensorStream, with_digest: bool = False) -> tuple[TensorEntry, ...]:
    """Write a stream to a new file. Returns its entries with digests, in name order.

    `with_digest` stores the `whole_digest` in the header's metadata after all tensors are written.
    """
    entries: list[TensorEntry] = []
    with path.open("wb") as file:
        file.write(header(stream.layout, NO_DIGEST if with_digest else ""))
        for expected, (name, tensor) in zip(stream.layout, stream.tensors, strict=True):
            entry = tensor_entry(name, tensor)
            if replace(entry, digest="") != expected:
                raise ValueError(f"{path}: expected {expected}, got {entry}")
            file.write(tensor_bytes(tensor))
            entries.append(entry)
        if with_digest:
            file.seek(0)
            file.write(header(stream.layout, whole_digest(entries)))
    return tuple(sorted(entries, key=lambda entry: entry.name))


class Checker:
    """Checks the bytes of a file without metadata against `entries`, as they arrive.

    `CorruptDataError` names the first tensor that differs, as soon as its last byte has arrived. Messages start with
    `where`.
    """

    def __init__(self, entries: Iterable[TensorEntry], where: str) -> None:
        layout = file_order(entries)
        start = header(layout)
        self._where, self._found = where, Digest()
        self._parts = deque((entry.name, entry.bytes, entry.digest) for entry in layout)
        self._name, self._left, self._digest = "the header", len(start), digest(start)

    def feed(self, data: bytes | memoryview) -> None:
        """Check the next bytes of the file, any number of them."""
        rest = memoryview(data)
        while rest:
            if not self._left:
                raise CorruptDataError(f"{self._where}: {len(rest)} bytes more than in the manifest")
            part, rest = rest[: self._left], rest[self._left :]
            self._found.update(part)
            self._left -= len(part)
            while not self._left and self._check_part_and_advance():
                pass

    def _check_part_and_advance(self) -> bool:
        """Check the complete part. Returns whether another one follows, which may be empty."""
        if self._found.hexdigest() != self._digest:
            raise CorruptDataError(f"{self._where}: {self._name} differs from its digest in the manifest")
        if not self._parts:
            return False
        self._found = Digest()
        self._name, self._left, self._digest = self._parts.popleft()
        return True

    def close(self) -> None:
        """Check that the file is complete."""
        if self._left:
            raise CorruptDataError(f"{self._where}: ends within {self._name}; {self._left} bytes of it are missing")
