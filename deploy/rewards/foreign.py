"""Manifests: clips of generators that douga does not run, to be rated beside its own.

```
video,prompt,generator,category,first_frame,seed
hailuo/0001.mp4,"A girl waves at a train.",hailuo,waving,frames/0001.png,17
```

JSONL or CSV, one clip per line, paths relative to the file. `video`, `prompt` and `generator` are required; `category`
(the action), `character`, `first_frame` (what the generator was given) and `seed` are not. Without `first_frame` the
clip's frame 0 counts as such (`rewarders/first_frame.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from actors.prompts.vocabulary import Vocabulary
from common.data.folders import find_file
from common.data.tables import BadRows, Columns, read_table, text_of
from common.data.video import clip_length
from common.digests import digest
from common.errors import ConfigError
from common.files import read_file
from common.images import decode_image

REQUIRED = ("video", "prompt", "generator")
OPTIONAL = ("category", "character", "first_frame", "seed")
LEAST_FRAMES = 8  # half a second at 16 frames per second: people cannot rate the motion of less
EVERY = 10.0  # seconds between progress lines
Log = Callable[[str], None]


@dataclass(frozen=True)
class ForeignClip:
    """One checked row of a manifest."""

    video: Path
    digest: str  # of the video's file
    prompt: str
    generator: str
    category: str | None = None
    character: str | None = None
    first_frame: Path | None = None
    seed: int | None = None


class Manifest:
    """Reads a manifest and checks all of it before anything is made."""

    def __init__(self, file: Path, taken: Collection[str], vocabulary: Vocabulary | None = None) -> None:
        """`taken` are the sources that a generator may not be called. Without `vocabulary` any category is allowed."""
        self._file, self._taken, self._vocabulary = file, taken, vocabulary
        self._lines: dict[tuple[object, ...], int] = {}  # what may be there only once -> where it is

    def clips(self, log: Log) -> list[ForeignClip]:
        """Returns all rows. `log` gets lines of progress. Raises `ConfigError` with one line per bad row."""
        good: list[ForeignClip] = []
        bad = BadRows(self._file)
        said = time.monotonic()
        for line, data in read_table(self._file, "manifest", bad):
            if fault := _columns_fault(data):
                bad.add(line, fault)
                if self._file.suffix == ".csv":
                    break  # all rows have these columns
                continue
            try:
                good.append(self._clip(line, _texts(data)))
            except ValueError as error:
                bad.add(line, error)
            if time.monotonic() - said > EVERY:
                log(f"{self._file}: {line} lines checked")
                said = time.monotonic()
        bad.check()
        if not good:
            raise ConfigError(f"{self._file}: no clips in it")
        return good

    def _clip(self, line: int, row: dict[str, str]) -> ForeignClip:
        if empty := [name for name in REQUIRED if not row[name]]:
            raise ValueError(f"no {' and no '.join(empty)}")
        if row["generator"] in self._taken:
            raise ValueError(f"generator = {row['generator']!r}: the set has clips under this name; choose another")
        path = find_file(self._file.parent, row["video"])
        self._check_once(line, "video", os.path.normpath(path))
        clip = ForeignClip(
            video=path,
            digest=digest(_checked_video(path)),
            prompt=row["prompt"],
            generator=row["generator"],
            category=row.get("category") or None,
            character=row.get("character") or None,
            first_frame=_checked_image(self._file.parent, row.get("first_frame") or ""),
            seed=_seed(row.get("seed") or ""),
        )
        self._check_once(line, f"{row['video']}: the same file content", clip.digest)
        if clip.seed is not None:
            made_of = (clip.generator, clip.prompt, clip.first_frame, clip.seed)
            self._check_once(line, "generator, prompt, first_frame and seed", *made_of)
        return clip if self._vocabulary is None else replace(clip, category=self._vocabulary.action(clip.category))

    def _check_once(self, line: int, what: str, *key: object) -> None:
        first = self._lines.setdefault((what.rpartition(": ")[2], *key), line)
        if first != line:
            raise ValueError(f"{what}: already in line {first}")


def _texts(row: Columns) -> dict[str, str]:
    """Raises `ValueError` for a column that is no text; a seed may be a number."""
    return {name: text_of(row, name, numbers=name == "seed") or "" for name in row}


def _columns_fault(row: Columns) -> str | None:
    missing = [name for name in REQUIRED if name not in row]
    unknown = [name for name in row if name not in REQUIRED + OPTIONAL]
    if not missing and not unknown:
        return None
    faults = [f"no column {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(unknown)
    return f"{'; '.join(faults)}; columns are {', '.join(REQUIRED)}, and optionally {', '.join(OPTIONAL)}"


def _checked_video(path: Path) -> bytes:
    """The file's content. Raises `ValueError` if it is missing, unreadable or too short."""
    try:
        data = read_file(path)
        frames, _ = clip_length(data)
    except OSError as error:
        raise ValueError(f"video {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"video {path}: {error}") from None
    if frames < LEAST_FRAMES:
        raise ValueError(f"video {path}: {frames} frames; at least {LEAST_FRAMES} are needed")
    return data


def _checked_image(folder: Path, name: str) -> Path | None:
    if not name:
        return None
    path = find_file(folder, name)
    try:
        decode_image(read_file(path))
    except OSError as error:
        raise ValueError(f"first_frame {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"first_frame {path}: {error}") from None
    return path


def _seed(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"seed = {text!r}: an integer of at least 0 is needed")
    return int(text)
