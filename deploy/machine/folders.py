"""Folders for temporary files that fit what is put into them.

Ray keeps Unix sockets in its session folder, and Linux allows 107 bytes for the path of one. `TMPDIR` is often longer
(batch systems, test runners), so Ray's folder is then put elsewhere.

```
$TMPDIR/ray/session_2026-12-01_02-17-37_203668_4194304/sockets/plasma_store
└ ROOM ┘└──────────────── RAY_PATH ───────────────────────────────────────┘   at most SOCKET_BYTES
```
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.errors import ConfigError

SOCKET_BYTES = 107  # longest path of a Unix socket on Linux
RAY_PATH = "/ray/session_2026-12-01_02-17-37_203668_4194304/sockets/plasma_store.1"  # the longest below a folder
ROOM = SOCKET_BYTES - len(RAY_PATH)  # bytes that are left for the folder itself
SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def temporary_folder() -> Path:
    """The folder for temporary files: `TMPDIR`, or the first usable one of Python's defaults.

    Raises `ConfigError` if no folder can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        asked = f"TMPDIR = {os.environ['TMPDIR']!r}, " if os.environ.get("TMPDIR") else ""
        raise ConfigError(f"no folder for temporary files: {asked}/tmp and /var/tmp cannot be written") from None


def ray_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for a Ray that a run starts: `RAY_TMPDIR` if set, else the first of `TMPDIR` and `SHORT` that fits.

    Raises `ConfigError` if `RAY_TMPDIR` is too long or cannot be written, or if no folder fits.
    """
    asked = environment.get("RAY_TMPDIR")
    if asked:
        fault = _fault(Path(asked).absolute())
        if fault:
            raise ConfigError(f"RAY_TMPDIR = {asked!r}: {fault}")
        return Path(asked).absolute() / "ray"
    places = [temporary_folder(), *(Path(place) for place in SHORT)]
    found = next((place for place in places if not _fault(place)), None)
    if found is None:
        raise ConfigError(
            f"no folder for Ray: {places[0]}: {_fault(places[0])}, and none of {', '.join(SHORT)} can be written; set "
            f"RAY_TMPDIR to a folder of at most {ROOM} bytes"
        )
    return found / "ray"


def _fault(place: Path) -> str:
    """Why Ray cannot keep its sockets below `place`; empty if it can."""
    length = len(os.fsencode(place))
    if length > ROOM:
        return f"{length} bytes long, but Ray's sockets need a path of at most {ROOM}"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)  # a full disk can still make empty files
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    mine = place / "ray"
    if mine.is_dir() and not os.access(mine, os.W_OK | os.X_OK):
        return f"{mine} belongs to another user"
    return ""
