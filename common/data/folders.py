"""Files in folders that users fill: found under the name that a table gives them, and only those that are meant.

The same name may be composed ("é" as one character, as Linux and Windows write it) or decomposed ("e" and an accent, as
macOS does). Tables and disks may differ in that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

from common.errors import ConfigError
from common.files import exists


def same_form(name: str) -> str:
    """A name in one Unicode form (NFC), to compare names that come from different systems."""
    return normalize("NFC", name)


def find_file(folder: Path, name: str) -> Path:
    """The path of `name`, relative to `folder`, as the disk writes it; the plain path if there is no such file."""
    path = folder / name
    if name.isascii() or exists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        found = found / part if exists(found / part) else _entry(found, part)
    return found


def _entry(folder: Path, name: str) -> Path:
    wanted = same_form(name)
    try:
        return next((one for one in sorted(folder.iterdir()) if same_form(one.name) == wanted), folder / name)
    except OSError:
        return folder / name


def files_of(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files of a folder with one of these suffixes, in any case, sorted by name.

    Hidden files are none of them: macOS writes a file of its own, ``._clip.mp4``, beside each clip on foreign disks.
    Raises `ConfigError` if a name cannot be written down because its bytes are not UTF-8, or for a link to nowhere.
    """
    allowed = {suffix.lower() for suffix in suffixes}
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in allowed and not path.name.startswith(".") and (path.is_file() or not path.exists())
    )
    for path in found:
        if not path.exists():
            raise ConfigError(f"{folder}: {path.name!r} is a link to a file that is not there")
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{folder}: the name {path.name!r} is not UTF-8; rename the file") from None
    return found
