"""The run's lock: only one process at a time may write to a run. It holds ``ledger.lock`` while the ledger is open.

It is an open file description lock (`fcntl`, F_OFD_SETLK). The kernel releases it when the process ends, even if
it is killed. Unlike flock, it can be queried without taking it, so `douga status` cannot make a run fail that is just
starting. Unlike a POSIX lock, it also conflicts within one process, and closing another handle of the file keeps it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import IO

from common.errors import ConfigError, StorageError
from common.errors.disk import writing

LOCK = "ledger.lock"
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid


def hold(folder: Path, name: str = LOCK, advice: str = "wait for it or choose another --name") -> IO[str]:
    """Lock a folder until the returned file is closed: a run's, or with another `name` of the lock, any. Creates it.

    Raises `ConfigError` if another process, or another handle in this one, holds the lock, or if the folder is not
    writable, and `StorageError` if its disk is full. `advice` says what to do in the first case.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be a run folder ({error}); choose another --root or --name") from None
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        holder = lock_owner(folder, name)
        file.close()
        who = "another process" if holder is None else f"process {holder}"
        raise ConfigError(f"{folder}: in use by {who}; {advice}") from None
    try:
        with writing(folder / name):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
    except StorageError:
        with suppress(OSError):  # closing writes the rest once more
            file.close()
        raise
    return file


def lock_owner(folder: Path, name: str = LOCK) -> int | None:
    """The id of the process that holds the lock of a folder; None if it is free. Takes no lock."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (folder / name).open(encoding="utf-8") as file:
            kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
            return None if kind == fcntl.F_UNLCK else int(file.read())
    except (OSError, ValueError):  # no lock file, or the holder has not written its id yet
        return None
