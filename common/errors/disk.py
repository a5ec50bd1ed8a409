"""Disk full, read-only or broken: one error class for everything that writes to the run folder.

```
ledger, blobs, weights, checkpoints, journal ──"No space left on device"──> StorageError ──> the run ends, exit code 3
```

All files in the run folder are written atomically, so such an error destroys nothing: once the disk can be written
again, the same command resumes the run. This module imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import StorageError

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV), "check the disk"),
}
RERUN = ", then rerun the same command to resume"
# SQLite's primary result codes for disk errors, as errno values. All other codes are bugs.
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
    """``with writing(path):`` turns disk errors in its body into a `StorageError` that names `path`.

    If the error names a file itself, that file is named instead. Other errors pass through unchanged.
    """
    try:
        yield
    except Exception as error:
        reason = describe_disk_error(error)
        if reason is None:
            raise
        place = getattr(error, "filename", None) or path
        raise StorageError(f"{place}: {reason}{_space(error, Path(os.fsdecode(place)))}") from error


def _space(error: Exception, path: Path) -> str:
    """The free space at `path`, if the disk is full."""
    if _errno(error) != errno.ENOSPC:
        return ""
    with suppress(OSError):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        usage = shutil.disk_usage(there)
        return f"; {amount(usage.free)} of {amount(usage.total)} are free there"
    return ""


def amount(size: float) -> str:
    """A number of bytes as text: "11.21 GB", "350.0 MB", "4 KB" (powers of 1000)."""
    for unit, digits, many in (("GB", 2, 1e9), ("MB", 1, 1e6)):
        if size >= many:
            return f"{size / many:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} KB"


def describe_disk_error(error: Exception) -> str | None:
    """What is wrong with the disk, and what to do. None if `error` is not a disk error."""
    if isinstance(error, sqlite3.Error) and is_damage(error):
        return f"damaged: {error}; rerun the same command for recovery instructions"
    number = _errno(error)
    if number not in ADVICE:
        return None
    return f"cannot be written: {os.strerror(number)}; {ADVICE[number]}{RERUN}"


def without_advice(error: StorageError) -> str:
    """The message of an error that does not end the run."""
    return str(error).replace(RERUN, "")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite reports a corrupt file."""
    return _primary(error) in SQLITE_DAMAGED


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _errno(error: Exception) -> int:
    """The errno of an error, 0 if unknown. Rust libraries (safetensors) put it in the message."""
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, sqlite3.Error):
        return SQLITE_ERRNO.get(_primary(error), 0)
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else 0
