"""Blobs on disk: one file per content, named by its hash. No pickle: a msgpack header, then raw bytes.

A file is named ``HASH-TOKEN``: whoever writes makes a file of its own, also where two write the same content at once.
The ledger says which file it keeps; a file that was deleted never comes back under its name, so no lock is needed.
Files are named by strings here: `pathlib` interns the parts of every path, and the interpreter's table of those, some
megabytes, is made anew in another thread's memory each few ten thousand names.

```
4 bytes   length of the header, little-endian
header    msgpack {"schema": 1, "arrays": [{"dtype", "shape"} | nil, ...]}
rest      the arrays' bytes, one after the other
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import Generic, TypeVar, cast

import msgpack

from common.digests import digest
from common.errors import StorageError
from common.errors.disk import sync, writing
from common.messages import ITEM_BYTES, SCHEMA_VERSION, SerializedTensor

PREFIX = 4
MAX_HEADER = 1 << 20


Answer = TypeVar("Answer")


class BlobError(RuntimeError):
    """A blob is missing or is not what its name says; the message names the file."""


def pack(arrays: Sequence[SerializedTensor | None]) -> bytes:
    """Arrays (or gaps) to the bytes of one blob; equal arrays give equal bytes."""
    return b"".join(pieces(arrays))


def pieces(arrays: Sequence[SerializedTensor | None]) -> list[bytes]:
    """The bytes of `pack` before they are joined, which would copy them."""
    entries = [None if array is None else {"dtype": array.dtype, "shape": list(array.shape)} for array in arrays]
    header = bytes(msgpack.packb({"schema": SCHEMA_VERSION, "arrays": entries}) or b"")
    return [len(header).to_bytes(PREFIX, "little"), header, *(array.data for array in arrays if array)]


def unpack(data: bytes) -> list[SerializedTensor | None]:
    """The arrays of `pack`, views of `data`. Sizes, dtypes and shapes are checked; `BlobError` says what is wrong."""
    end = PREFIX + int.from_bytes(data[:PREFIX], "little")
    if not PREFIX < end <= min(len(data), MAX_HEADER):
        raise BlobError(f"blob of {len(data)} bytes: its header would end at byte {end}")
    header = msgpack.unpackb(data[PREFIX:end])
    if header.get("schema") != SCHEMA_VERSION:
        raise BlobError(f"blob of schema {header.get('schema')}; this program reads {SCHEMA_VERSION}")
    arrays: list[SerializedTensor | None] = []
    view = memoryview(data)
    for entry in header["arrays"]:
        if entry is None:
            arrays.append(None)
            continue
        shape = tuple(int(size) for size in entry["shape"])
        start, end = end, end + prod(shape) * ITEM_BYTES[entry["dtype"]]
        arrays.append(SerializedTensor(entry["dtype"], shape, cast("bytes", view[start:end])))
    if end != len(data):
        raise BlobError(f"blob of {len(data)} bytes: its header accounts for {end}")
    return arrays


def raw(data: bytes) -> SerializedTensor:
    """Plain bytes (a PNG, an mp4) as an array."""
    return SerializedTensor("uint8", (len(data),), data)


@dataclass(slots=True)
class StagedBlob:
    """A blob on disk that the ledger may take. Until then nobody finds it, and the next opening sweeps it."""

    digest: str
    size: int  # bytes
    file: str
    taken: bool = False


class BlobHandle:
    """A blob that was opened while it had its name: it can be read, once, also after it was deleted."""

    def __init__(self, path: str) -> None:
        self._path = path
        with _reading(path):
            self._file: BufferedReader = open(path, "rb")  # noqa: PTH123, SIM115

    def read(self) -> list[SerializedTensor | None]:
        """The arrays, checked against the name. Raises `StorageError`."""
        with _reading(self._path), self._file as file:
            data = file.read()
        if not _is_of(os.path.basename(self._path), data):  # noqa: PTH119
            run = Path(self._path).parent.parent
            raise StorageError(
                f"{self._path}: damaged: content differs from its name; mend the run with: douga recover {run}"
            )
        return unpack(data)

    def read_one(self) -> SerializedTensor:
        """The only array of a blob that has one."""
        (array,) = self.read()
        if array is None:
            raise BlobError(f"{self._path}: blob is empty")
        return array


@dataclass(frozen=True, slots=True)
class DeferredRead(Generic[Answer]):
    """What a turn handed out, but for its blobs, which are open: `read` it, once, when the turn is over.

    Who cannot read it calls `put_back` in another turn: then it is as if it had not been handed out.
    """

    read: Callable[[], Answer]
    put_back: Callable[[], None]


class BlobStore:
    """A folder of content-hashed files. Thread-safe: hashing and the disk let other threads work.

    Where the disk refuses, all of it raises `StorageError`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for parent in folder.parents[:2]:
            sync(parent)

    @contextmanager
    def staging(self, *blobs: Sequence[SerializedTensor | None]) -> Iterator[list[StagedBlob]]:
        """``with staging([latents], [clip]) as staged:`` both are durable; what is not taken within is removed."""
        staged: list[StagedBlob] = []
        try:
            for arrays in blobs:
                staged.append(self.write(arrays))
            self.sync([one.file for one in staged])
            yield staged
        finally:
            for one in staged:
                if not one.taken:
                    self.discard(one.file)

    def write(self, arrays: Sequence[SerializedTensor | None]) -> StagedBlob:
        """A new file, not yet durable. Where it does not fit, nothing of it stays."""
        parts = pieces(arrays)
        name = digest(*parts)
        staged = StagedBlob(name, sum(map(len, parts)), f"{name}-{token_hex(4)}")
        path = self._at(staged.file)
        try:
            with writing(path), open(path, "xb") as file:  # noqa: PTH123
                os.posix_fallocate(file.fileno(), 0, staged.size)  # found at once, the space costs half the time
                file.writelines(parts)
        except BaseException:
            self.discard(staged.file)
            raise
        return staged

    def sync(self, files: Sequence[str]) -> None:
        """Make files durable: their content, and that they are there, which is content of the folder."""
        for file in files:
            sync(self._at(file))
        sync(self.folder)

    def open(self, file: str) -> BlobHandle:
        """A blob to read."""
        return BlobHandle(self._at(file))

    def _at(self, file: str) -> str:
        return f"{self.folder}/{file}"

    def is_sound(self, file: str) -> bool:
        """Whether the file is there and holds what its name says."""
        path = self.folder / file
        with writing(path):
            return path.exists() and _is_of(file, path.read_bytes())

    def delete(self, file: str) -> None:
        """Remove a blob; nothing happens when it is gone already."""
        path = self._at(file)
        with writing(path), suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108

    def discard(self, file: str) -> None:
        """Remove what nobody needs. Where the disk refuses, the next opening sweeps it."""
        with suppress(StorageError):
            self.delete(file)

    def names(self) -> set[str]:
        """All files that are there."""
        return {path.name for path in self.folder.iterdir()}

    def sweep(self, known: Collection[str]) -> None:
        """Delete every file that is not in `known`: left by a dead process, or where the disk refused."""
        for name in self.names().difference(known):
            self.delete(name)


def digest_of(file: str) -> str:
    """The hash in a file's name."""
    return file.partition("-")[0]


def _is_of(file: str, data: bytes) -> bool:
    return digest(data) == digest_of(file)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: blob cannot be read: {error.strerror}") from None
