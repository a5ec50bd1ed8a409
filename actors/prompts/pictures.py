"""Checks the first frames of a prompt file at the start: every picture is decoded, many at a time.

A picture that was found whole is remembered by path, size and time of change, so that a resumed or corrected command
does not decode thousands of them again. The memory is outside of run folders: a refused configuration claims none.

```
$XDG_CACHE_HOME/douga/pictures/DIGEST.json      one for each prompt file of `REMEMBERED_FROM` or more pictures
```
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from PIL import __version__ as pillow

from common.digests import digest
from common.errors import StorageError
from common.files import write_whole
from common.images import decode_image

REMEMBERED_FROM = 500  # pictures; fewer are decoded in a second or two
EVERY = 10.0  # seconds between two lines of progress
THREADS = min(16, len(os.sched_getaffinity(0)))

Tell = Callable[[str], None]


def silent(line: str) -> None:
    """Tells nothing."""


def broken_pictures(file: Path, pictures: Collection[Path], tell: Tell = silent) -> dict[Path, str]:
    """What is wrong with each picture of the prompt file `file` that cannot be shown. `tell` gets lines of progress."""
    memory = Memory(file) if len(pictures) >= REMEMBERED_FROM else None
    known = memory.read() if memory else set()
    faults: dict[Path, str] = {}
    whole: set[str] = set()
    said = time.monotonic()
    try:
        for place, (path, mark, fault) in enumerate(_checked(pictures, known), start=1):
            if fault is None:
                whole.add(mark)
            else:
                faults[path] = fault
            if time.monotonic() - said > EVERY:
                tell(f"{file}: {place} of {len(pictures)} pictures checked")
                said = time.monotonic()
    finally:  # also when interrupted
        if memory:
            memory.write(whole | known if len(whole) + len(faults) < len(pictures) else whole)
    return faults


def _checked(pictures: Collection[Path], known: set[str]) -> Iterator[tuple[Path, str, str | None]]:
    pool = ThreadPoolExecutor(THREADS)  # Pillow decodes without holding the interpreter's lock
    try:
        yield from pool.map(lambda path: _check(path, known), pictures)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _check(path: Path, known: set[str]) -> tuple[Path, str, str | None]:
    """A picture, its mark in the memory, and its fault."""
    mark = ""
    try:
        state = path.stat()
        mark = digest(f"{path}|{state.st_size}|{state.st_mtime_ns}|{pillow}".encode())
        if mark not in known:
            decode_image(path.read_bytes())
    except OSError as error:
        return path, mark, f"cannot be read: {error.strerror}"
    except ValueError as error:
        return path, mark, str(error)
    return path, mark, None


class Memory:
    """The marks of pictures that were found whole. A memory that cannot be read or written is an empty one."""

    def __init__(self, file: Path) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
        name = digest(os.fsencode(file.resolve()))
        self._place = cache / "douga" / "pictures" / f"{name}.json" if cache.is_absolute() else None

    def read(self) -> set[str]:
        """All marks."""
        if self._place is not None:
            with suppress(OSError, ValueError, TypeError):
                return set(json.loads(self._place.read_text("utf-8")))
        return set()

    def write(self, marks: set[str]) -> None:
        """Replaces all marks."""
        if self._place is not None:
            with suppress(OSError, StorageError):
                self._place.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._place, json.dumps(sorted(marks)))
