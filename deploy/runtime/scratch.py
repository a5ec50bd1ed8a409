"""Scratch folders of processes that may be killed: whoever opens one removes those of the dead.

```
$TMPDIR/douga-scratch-sampler-0-k3j2x9/          as long as its process lives, it holds a lock on the folder
```

A sampler keeps staged weights in its own. One that is killed cannot remove them, and after weeks of restarts they would
fill the disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "douga-scratch-"  # nobody else's: what begins so and is not locked is deleted


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """``with scratch("sampler-0") as folder:`` an empty folder, gone at the end. Those that dead processes of the same
    user have left beside it are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_if_dead(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
        held = _lock(folder)
        if held is not None:  # else somebody took it for a dead one's before it was locked
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _remove_if_dead(folder: Path) -> None:
    held = _lock(folder)
    if held is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _lock(folder: Path) -> int | None:
    """An open handle that locks the folder until it is closed, also by the process' death; None where another holds it,
    or it is not there, or is another user's."""
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
