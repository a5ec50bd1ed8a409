"""When the disk refuses: full, read-only, broken. One kind of error for all that write into a run's folder.

```
ledger, blobs, weights, checkpoints, journal ──"No space left on device"──> StorageError ──> the run ends, exit code 3
```

Everything in a run's folder appears whole or not at all, so what was there before such an error is there after it, and
the same command goes on once the disk takes bytes again. This module imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import StorageError

ROOM, RIGHT, DISK = "free some space", "make it writable", "see to the disk"
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), RIGHT),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV), DISK),
}
# Primary result codes of SQLite, and what they are to the system; the other codes are faults of the program.
SQLITE_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
}
SQLITE_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """``with writing(path):`` where the disk refuses what is done inside, that is a `StorageError` naming `path`.

    An error that names its own file keeps it. All other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        words = refusal(error)
        if words is None:
            raise
        raise StorageError(f"{getattr(error, 'filename', None) or path}: {words}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part. Raises `StorageError`."""
    scratch = path.with_name(f".{path.name}.part")
    with writing(path):
        scratch.write_text(text, "utf-8")
        scratch.replace(path)


def refusal(error: Exception) -> str | None:
    """What an error says about the disk, and the way out; None when it says nothing about it."""
    if isinstance(error, sqlite3.Error) and is_damage(error):
        return f"damaged: {error}; start the same command again, it names the way out"
    number = _errno(error)
    if number not in ADVICE:
        return None
    return f"cannot be written: {os.strerror(number)}; {ADVICE[number]}, then the same command goes on"


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite found its file damaged."""
    return _primary(error) in SQLITE_DAMAGED


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _errno(error: Exception) -> int:
    """The system's error number; libraries written in Rust (safetensors) tell it in words."""
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, sqlite3.Error):
        return SQLITE_ERRNO.get(_primary(error), 0)
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0


def sync(path: Path | str) -> None:
    """Bring a file's (or a folder's) content to the disk before what follows. Raises `StorageError`."""
    with writing(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
