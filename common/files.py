"""Atomic and durable writes of files and folders. Raises `StorageError` if the disk is full, read-only or broken.

And reads of files that users name, which may be anything.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors.disk import writing


def read_file(path: Path) -> bytes:
    """A file's content. Raises `OSError`, also for a pipe or a device, which might never end."""
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return path.read_bytes()


def exists(path: Path) -> bool:
    """Whether there is such a file or folder. `Path.exists` raises for a name that is too long for any disk."""
    try:
        return path.exists()
    except OSError:
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """``with replacing(path) as draft:`` writes `draft`, which then replaces `path`. After an error nothing is left.

    Raises `StorageError`.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            yield draft
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part."""
    with replacing(path) as draft:
        draft.write_text(text, "utf-8")


def sync(path: Path | str) -> None:
    """fsync a file or folder."""
    with writing(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def new_folder(place: Path, durable: bool = True) -> Iterator[Path]:
    """Create a folder atomically: ``with new_folder(place) as folder`` fills a draft, which is renamed at the end.

    A draft left by a crash is removed first, and an existing `place` is replaced. After an error nothing is left. If
    not `durable`, files are not fsynced: after a power cut they may be missing or empty.
    """
    draft = draft_of(place)
    try:
        with writing(place):
            if draft.exists():
                shutil.rmtree(draft)
            draft.mkdir(parents=True)
            yield draft
            for file in draft.iterdir() if durable else ():
                sync(file)
            if place.exists():
                shutil.rmtree(place)
            draft.rename(place)
            if durable:
                sync(place.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def draft_of(place: Path) -> Path:
    """The draft folder of `new_folder(place)`."""
    return place.with_name(f".{place.name}.draft")
