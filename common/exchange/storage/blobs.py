"""Blob files: content-hashed arrays on disk, as a msgpack header and raw bytes (no pickle).

A file is named ``HASH-TOKEN``. The random token gives every write its own file, even if two threads write the same
content at once. The ledger records which file it keeps. A deleted file name is never reused, so no lock is needed.

```
4 bytes   length of the header, little-endian
header    msgpack {"schema": 1, "arrays": [{"dtype", "shape"} | nil, ...]}
rest      the bytes of the arrays, concatenated
```
"""

from __future__ import annotations

import os
import shlex
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
from common.errors.disk import writing
from common.files import sync
from common.messages import ITEM_BYTES, SCHEMA_VERSION, SerializedTensor

PREFIX = 4
MAX_HEADER = 1 << 20


Answer = TypeVar("Answer")


class BlobError(RuntimeError):
    """A blob has an invalid header, size or schema, or lacks a required array."""


def pack(arrays: Sequence[SerializedTensor | None]) -> bytes:
    """Serialize arrays to one blob. None marks an array that is absent. Equal arrays give equal bytes."""
    return b"".join(pieces(arrays))


def pieces(arrays: Sequence[SerializedTensor | None]) -> list[bytes]:
    """The parts of `pack` without joining them, which would copy the arrays."""
    entries = [None if array is None else {"dtype": array.dtype, "shape": list(array.shape)} for array in arrays]
    header = bytes(msgpack.packb({"schema": SCHEMA_VERSION, "arrays": entries}) or b"")
    return [len(header).to_bytes(PREFIX, "little"), header, *(array.data for array in arrays if array)]


def unpack(data: bytes) -> list[SerializedTensor | None]:
    """The arrays that `pack` serialized, as views of `data`. Raises `BlobError` if sizes or schema do not match."""
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
        raise BlobError(f"blob of {len(data)} bytes: its header describes {end}")
    return arrays


def raw(data: bytes) -> SerializedTensor:
    """Plain bytes (a PNG, an mp4) as an array."""
    return SerializedTensor("uint8", (len(data),), data)


@dataclass(slots=True)
class StagedBlob:
    """A blob file that the ledger does not reference yet. If it never does, `sweep` deletes the file."""

    digest: str
    size: int  # bytes
    file: str
    taken: bool = False  # whether the ledger references the file


class BlobHandle:
    """An open blob file. It can be read once, even if the file was deleted after opening."""

    def __init__(self, path: str) -> None:
        self._path = path
        with _reading(path):
            self._file: BufferedReader = open(path, "rb")  # noqa: PTH123, SIM115

    def read(self) -> list[SerializedTensor | None]:
        """The arrays. Raises `StorageError` if the file is unreadable or does not match its hash."""
        with _reading(self._path), self._file as file:
            data = file.read()
        if not _is_of(os.path.basename(self._path), data):  # noqa: PTH119
            run = Path(self._path).parent.parent
            raise StorageError(
                f"{self._path}: damaged: content differs from its name; repair the run with: douga recover "
                f"{shlex.quote(str(run))}"
            )
        return unpack(data)

    def read_one(self) -> SerializedTensor:
        """The array of a blob that holds exactly one. Raises like `read`, and `BlobError` if it is absent."""
        (array,) = self.read()
        if array is None:
            raise BlobError(f"{self._path}: blob is empty")
        return array


@dataclass(frozen=True, slots=True)
class DeferredRead(Generic[Answer]):
    """The result of a lease whose blobs are open but not read yet. Call `read` once, after the commit.

    If `read` fails, call `release` through the commit queue: it releases the lease.
    """

    read: Callable[[], Answer]
    release: Callable[[], None]


class BlobStore:
    """A folder of content-hashed files. Thread-safe: hashing and disk I/O release the GIL.

    All methods raise `StorageError` if a disk operation fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for parent in folder.parents[:2]:
            sync(parent)

    @contextmanager
    def staging(self, *blobs: Sequence[SerializedTensor | None]) -> Iterator[list[StagedBlob]]:
        """Write blobs durably: ``with staging([latents], [clip]) as staged:``.

        On exit it deletes the files that the ledger did not take.
        """
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
        """Write a new file, not yet durable. Removes it again if the write fails."""
        parts = pieces(arrays)
        name = digest(*parts)
        staged = StagedBlob(name, sum(map(len, parts)), f"{name}-{token_hex(4)}")
        path = self._at(staged.file)
        try:
            with writing(path), open(path, "xb") as file:  # noqa: PTH123
                os.posix_fallocate(file.fileno(), 0, staged.size)  # halves the time of the write
                file.writelines(parts)
        except BaseException:
            self.discard(staged.file)
            raise
        return staged

    def sync(self, files: Sequence[str]) -> None:
        """Make files durable: fsync them and the folder, which holds their names."""
        for file in files:
            sync(self._at(file))
        sync(self.folder)

    def open(self, file: str) -> BlobHandle:
        """Open a blob for reading."""
        return BlobHandle(self._at(file))

    def _at(self, file: str) -> str:
        # A string, because `pathlib` interns the parts of every path. Every few ten thousand names, the interpreter
        # would rebuild its intern table, several megabytes, in the memory arena of some thread.
        return f"{self.folder}/{file}"

    def is_sound(self, file: str) -> bool:
        """Whether the file exists and its content matches the hash in its name. Reads the whole file."""
        path = self.folder / file
        with writing(path):
            return path.exists() and _is_of(file, path.read_bytes())

    def delete(self, file: str) -> None:
        """Delete a blob file, if it exists."""
        path = self._at(file)
        with writing(path), suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108

    def discard(self, file: str) -> None:
        """Delete an unneeded file. Ignores disk errors, since `sweep` retries when the ledger is next opened."""
        with suppress(StorageError):
            self.delete(file)

    def names(self) -> set[str]:
        """The names of all files in the folder."""
        return {path.name for path in self.folder.iterdir()}

    def sweep(self, known: Collection[str]) -> None:
        """Delete every file not in `known`: leftovers of a killed process or of a failed deletion."""
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
