"""Copies of the ledger, one for every checkpoint that is kept: what `douga recover` goes back to.

```
RUN/snapshots/step-000040.sqlite        the ledger when the checkpoint of step 40 was on disk
```
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from common.errors.disk import sync, writing

FOLDER = "snapshots"


def place(folder: Path, step: int) -> Path:
    """Where the copy of `step` lives in a run's folder."""
    return folder / FOLDER / f"step-{step:06d}.sqlite"


def steps(folder: Path) -> list[int]:
    """The steps of the copies in a run's folder, rising."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (folder / FOLDER).glob("step-[0-9]*.sqlite"))


def take(database: sqlite3.Connection, folder: Path, step: int) -> None:
    """Copy a database, whole or not at all: written beside its place, brought to the disk, renamed into it."""
    target = place(folder, step)
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
    """Delete all copies but those of some steps."""
    for step in steps(folder):
        if step not in kept:
            with writing(place(folder, step)):
                place(folder, step).unlink()
