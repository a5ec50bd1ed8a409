"""Scratch folders of processes that may be killed: opening one removes those of dead processes.

```
$TMPDIR/douga-scratch-sampler-0-k3j2x9/          its process holds a lock on the folder as long as it lives
```

A sampler stages weights in its scratch folder. A killed sampler cannot remove it, and over weeks of restarts such
folders would fill the disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "douga-scratch-"  # folders with this prefix that are not locked are deleted


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yields an empty folder and deletes it after the block: ``with scratch("sampler-0") as folder``.

    First removes the scratch folders that dead processes of the same user left behind.
    """
    for left in scratch_folders():
        _remove_if_dead(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
        held = _lock(folder)
        if held is not None:  # else another process removed the folder before it was locked
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def scratch_folders() -> list[Path]:
    """The scratch folders on this machine that are in use, and those that nobody has deleted yet."""
    return list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


def _remove_if_dead(folder: Path) -> None:
    held = _lock(folder)
    if held is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _lock(folder: Path) -> int | None:
    """Returns a file descriptor that locks the folder until it is closed or the process dies.

    None if another process holds the lock, the folder does not exist, or it belongs to another user.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid == os.getuid() and folder.exists():
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
