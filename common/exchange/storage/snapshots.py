"""Snapshots of the ledger, one per kept checkpoint. `douga recover` restores them.

```
RUN/snapshots/step-000040.sqlite        the ledger as of the checkpoint of step 40
```
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from common.errors.disk import writing
from common.files import sync

FOLDER = "snapshots"


def path_of(folder: Path, step: int) -> Path:
    """Path of the snapshot of `step` in a run's folder."""
    return folder / FOLDER / f"step-{step:06d}.sqlite"


def steps(folder: Path) -> list[int]:
    """Steps of the snapshots in a run's folder, ascending."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (folder / FOLDER).glob("step-[0-9]*.sqlite"))


def take(database: sqlite3.Connection, folder: Path, step: int) -> None:
    """Copy a database atomically: write a draft, sync it, rename it. Raises `StorageError` on a disk error."""
    target = path_of(folder, step)
    draft = target.with_suffix(".part")
    try:
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            draft.unlink(missing_ok=True)
            database.execute("VACUUM INTO ?", (str(draft),))
            sync(draft)
            draft.replace(target)
            sync(target.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def keep(folder: Path, kept: Collection[int]) -> None:
    """Delete all snapshots except those of the steps in `kept`."""
    for step in steps(folder):
        if step not in kept:
            with writing(path_of(folder, step)):
                path_of(folder, step).unlink()
