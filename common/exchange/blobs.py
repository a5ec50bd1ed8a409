"""Blobs on disk: one file per content, named by its hash. No pickle: a msgpack header, then raw bytes.

```
4 bytes   length of the header, little-endian
header    msgpack {"schema": 1, "arrays": [{"dtype", "shape"} | nil, ...]}
rest      the arrays' bytes, one after the other
```
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from hashlib import blake2b
from math import prod
from pathlib import Path

import msgpack

from common.messages import ITEM_BYTES, SCHEMA_VERSION, Array
from common.storage import StorageFailed, sync, writing

PREFIX = 4
MAX_HEADER = 1 << 20


class BlobError(RuntimeError):
    """Bytes that are no blob; the message says why."""


def pack(arrays: Sequence[Array | None]) -> bytes:
    """Arrays (or gaps) to the bytes of one blob; equal arrays give equal bytes."""
    entries = [None if array is None else {"dtype": array.dtype, "shape": list(array.shape)} for array in arrays]
    header = bytes(msgpack.packb({"schema": SCHEMA_VERSION, "arrays": entries}) or b"")
    return b"".join([len(header).to_bytes(PREFIX, "little"), header, *(array.data for array in arrays if array)])


def unpack(data: bytes) -> list[Array | None]:
    """The arrays of `pack`. Sizes, dtypes and shapes are checked; `BlobError` says what is wrong."""
    end = PREFIX + int.from_bytes(data[:PREFIX], "little")
    if not PREFIX < end <= min(len(data), MAX_HEADER):
        raise BlobError(f"blob of {len(data)} bytes: its header would end at byte {end}")
    header = msgpack.unpackb(data[PREFIX:end])
    if header.get("schema") != SCHEMA_VERSION:
        raise BlobError(f"blob of schema {header.get('schema')}; this program reads {SCHEMA_VERSION}")
    arrays: list[Array | None] = []
    for entry in header["arrays"]:
        if entry is None:
            arrays.append(None)
            continue
        shape = tuple(int(size) for size in entry["shape"])
        start, end = end, end + prod(shape) * ITEM_BYTES[entry["dtype"]]
        arrays.append(Array(entry["dtype"], shape, data[start:end]))
    if end != len(data):
        raise BlobError(f"blob of {len(data)} bytes: its header accounts for {end}")
    return arrays


def raw(data: bytes) -> Array:
    """Plain bytes (a PNG, an mp4) as an array."""
    return Array("uint8", (len(data),), data)


class BlobStore:
    """A folder of content-hashed files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Write `data` (temporary file, fsync, rename) unless it is there; its digest, 32 hex digits.

        The name itself is safe after the next `sync`. Raises `StorageFailed`; then nothing of it stays.
        """
        digest = blake2b(data, digest_size=16).hexdigest()
        path = self.folder / digest
        if path.exists():
            return digest
        temporary = self.folder / f"{digest}.tmp"
        try:
            with writing(path), temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except StorageFailed:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return digest

    def sync(self) -> None:
        """Make the names of all blobs put so far safe."""
        sync(self.folder)

    def get(self, digest: str) -> bytes:
        """The content, checked against its digest. Raises `StorageFailed`."""
        path = self.folder / digest
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageFailed(f"{path}: blob cannot be read: {error.strerror}") from None
        if blake2b(data, digest_size=16).hexdigest() != digest:
            raise StorageFailed(
                f"{path}: damaged: content differs from its name; mend the run with: douga recover {self.folder.parent}"
            )
        return data

    def is_sound(self, digest: str) -> bool:
        """Whether the file is there and holds what its name says. Raises `StorageFailed` where that cannot be told."""
        path = self.folder / digest
        with writing(path):
            return path.exists() and blake2b(path.read_bytes(), digest_size=16).hexdigest() == digest

    def delete(self, digest: str) -> None:
        """Remove a blob; nothing happens when it is gone already."""
        path = self.folder / digest
        with writing(path):
            path.unlink(missing_ok=True)

    def names(self) -> set[str]:
        """All files that are there."""
        return {path.name for path in self.folder.iterdir()}

    def sweep(self, known: Collection[str]) -> None:
        """Delete every file that is not in `known`: left by a dead process, or by an undone transaction."""
        for name in self.names().difference(known):
            self.delete(name)
