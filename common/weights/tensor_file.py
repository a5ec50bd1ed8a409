"""Tensors in a file, written and checked while they pass: nobody holds all of them. The format is safetensors.

```
8 bytes   length of the header, little-endian
header    {"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, padded with spaces
data      tensor after tensor, in the header's order
```

The header says names, dtypes and shapes, which are known before the first tensor is there; the order of the tensors
follows from them. So equal weights make equal files, the same that `safetensors` itself writes, and a reader who knows
what is to come needs to believe nothing in the file.
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

# In the order in which safetensors puts them: the coarsest alignment first.
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
NO_DIGEST = "0" * DIGITS  # holds the place of one


@dataclass(frozen=True)
class TensorStream:
    """A state dict whose tensors come one after the other; `layout` says before what will come."""

    layout: Sequence[TensorEntry]  # in file order; digests are empty
    tensors: Iterable[tuple[str, torch.Tensor]]  # whole, in that order; to be gone through once

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> TensorStream:
        """One that is in memory as a whole."""
        layout = file_order(described(name, tensor, tensor.shape) for name, tensor in state.items())
        return cls(layout, ((entry.name, state[entry.name]) for entry in layout))


def described(name: str, tensor: torch.Tensor, shape: Iterable[int]) -> TensorEntry:
    """The entry, without digest, of a tensor whose whole shape is `shape`."""
    whole = torch.Size(shape)
    return TensorEntry(name, dtype_name(tensor), tuple(whole), whole.numel() * tensor.element_size(), "")


def file_order(layout: Iterable[TensorEntry]) -> list[TensorEntry]:
    """As the tensors lie in the file. `ConfigError` for a dtype that the format does not know."""
    layout = list(layout)
    for entry in layout:
        if entry.dtype not in CODES:
            raise ConfigError(f"{entry.name}: dtype {entry.dtype!r}; allowed are {', '.join(CODES)}")
    return sorted(layout, key=lambda entry: (RANKS[entry.dtype], entry.name))


def header(layout: Iterable[TensorEntry], digest: str = "") -> bytes:
    """All that stands before the data. `layout` is in file order; `digest` becomes metadata."""
    lines: dict[str, object] = {"__metadata__": {"digest": digest}} if digest else {}
    end = 0
    for entry in layout:
        start, end = end, end + entry.bytes
        lines[entry.name] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(lines, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(layout: Iterable[TensorEntry]) -> int:
    """Bytes of a file without metadata."""
    layout = file_order(layout)
    return len(header(layout)) + sum(entry.bytes for entry in layout)


def write(path: Path, stream: TensorStream, with_digest: bool = False) -> tuple[TensorEntry, ...]:
    """Write a stream to a new file; its entries with digests, in name order.

    `with_digest` puts their `whole_digest` into the header's metadata, once it is known.
    """
    entries: list[TensorEntry] = []
    with path.open("wb") as file:
        file.write(header(stream.layout, NO_DIGEST if with_digest else ""))
        for expected, (name, tensor) in zip(stream.layout, stream.tensors, strict=True):
            entry = tensor_entry(name, tensor)
            if replace(entry, digest="") != expected:
                raise ValueError(f"{path}: {entry} came where {expected} was announced")
            file.write(tensor_bytes(tensor))
            entries.append(entry)
        if with_digest:
            file.seek(0)
            file.write(header(stream.layout, whole_digest(entries)))
    return tuple(sorted(entries, key=lambda entry: entry.name))


class Checker:
    """Compares the bytes of a file without metadata, as they pass, with what `entries` say of them.

    `CorruptDataError` names the first tensor that differs, when its last byte is there. `where` is what errors begin
    with.
    """

    def __init__(self, entries: Iterable[TensorEntry], where: str) -> None:
        layout = file_order(entries)
        start = header(layout)
        self._where, self._found = where, Digest()
        self._parts = deque((entry.name, entry.bytes, entry.digest) for entry in layout)
        self._name, self._left, self._digest = "the header", len(start), digest(start)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the file, as many as there are."""
        rest = memoryview(data)
        while rest:
            if not self._left:
                raise CorruptDataError(f"{self._where}: {len(rest)} bytes more than the manifest says")
            part, rest = rest[: self._left], rest[self._left :]
            self._found.update(part)
            self._left -= len(part)
            while not self._left and self._compare_and_go_on():
                pass

    def _compare_and_go_on(self) -> bool:
        """Whether another part, which may be empty, follows the one that is complete."""
        if self._found.hexdigest() != self._digest:
            raise CorruptDataError(f"{self._where}: {self._name} differs from its digest in the manifest")
        if not self._parts:
            return False
        self._found = Digest()
        self._name, self._left, self._digest = self._parts.popleft()
        return True

    def close(self) -> None:
        """No more bytes come."""
        if self._left:
            raise CorruptDataError(f"{self._where}: ends within {self._name}; {self._left} bytes of it are missing")
