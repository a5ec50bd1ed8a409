"""Rated clips on disk, and pairs of them: what people's page writes and what reward training reads. Imports no torch.

```
ratings.jsonl   {"clip": "clips/0001.mp4", "first_frame": "frames/0001.png", "prompt": "a robot walks right",
                 "character": "robot", "category": "walk", "source": "cogvideox-5b",
                 "ratings": {"alice": {"smoothness": 4, "motion": 5}, "bob": {"smoothness": 3}}}
pairs.jsonl     {"prompt": "a robot walks right", "first_frame": "frames/0001.png", "winner": "clips/0001.mp4",
                 "loser": "clips/0002.mp4", "winner_rating": 4.5, "loser_rating": 2, "category": "walk",
                 "annotators": 2}
```

One row a clip, or a pair; paths are relative to the file. `source` is the generator that made the clip, `REAL` for a
source video. A rating is a number 1 (worst) .. 5 (best); who did not rate a dimension leaves it out, and a clip that
nobody rated yet has none. Names of dimensions are free.

A bad row is named with its file and line, counted and skipped (`Table.bad`); a file without any good row is a
`ConfigError`.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Generic, TypeVar

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.data.video import clip_length, decode_frames
from common.errors import ConfigError
from common.errors.disk import write_whole

LOWEST, HIGHEST = 1.0, 5.0
REAL = "real"  # the source of a clip that no model made
POINTS = 25.0  # of a score's 100, for each point of a rating

Rating = Annotated[float, Field(strict=True, ge=LOWEST, le=HIGHEST, allow_inf_nan=False)]
Word = Annotated[str, Field(min_length=1)]


class Row(BaseModel, ABC):
    """A line of one of the files: unknown columns are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def files(self) -> tuple[Sequence[str], str | None]:
        """Names of the clips and of the first frame that must be there."""


class RatedClip(Row):
    """One clip, what it was made for, and annotator -> dimension -> rating."""

    clip: Word
    first_frame: Word | None = None
    prompt: Word
    character: Word | None = None
    category: Word | None = None
    source: Word
    ratings: dict[Word, dict[Word, Rating]] = {}

    def files(self) -> tuple[Sequence[str], str | None]:
        """See `Row.files`."""
        return [self.clip], self.first_frame

    def opinions(self, dimension: str) -> list[float]:
        """All ratings of a dimension, 1..5, in the annotators' order; empty where nobody rated it."""
        return [given[dimension] for given in self.ratings.values() if dimension in given]

    def mean_opinion(self, dimension: str) -> float | None:
        """The mean of the annotators' ratings, 1..5; None where nobody rated it."""
        opinions = self.opinions(dimension)
        return fmean(opinions) if opinions else None


class RatedPair(Row):
    """Two clips of one prompt, of which people preferred `winner`. Ratings (1..5) where the pair comes from ratings."""

    prompt: Word
    first_frame: Word | None = None
    winner: Word
    loser: Word
    winner_rating: Rating | None = None
    loser_rating: Rating | None = None
    category: Word | None = None
    annotators: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _two(self) -> RatedPair:
        if os.path.normpath(self.winner) == os.path.normpath(self.loser):
            raise ValueError(f"winner and loser are one clip, {self.winner}")
        best, worst = self.winner_rating, self.loser_rating
        if best is not None and worst is not None and best <= worst:
            raise ValueError(f"winner_rating {best:g} is not above loser_rating {worst:g}")
        return self

    def files(self) -> tuple[Sequence[str], str | None]:
        """See `Row.files`."""
        return [self.winner, self.loser], self.first_frame


def to_score(rating: float) -> float:
    """A rating 1..5 as a score 0..100."""
    return (rating - LOWEST) * POINTS


def to_rating(score: float) -> float:
    """A score 0..100 as a rating 1..5."""
    return score / POINTS + LOWEST


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    file: Path
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


Kind = TypeVar("Kind", bound=Row)


@dataclass(frozen=True)
class Table(Generic[Kind]):
    """The good rows of a file in its order, each with its line, and the bad ones."""

    file: Path
    rows: tuple[Kind, ...]
    lines: tuple[int, ...]
    bad: tuple[BadRow, ...]

    def place(self, name: str) -> Path:
        """Where a file that a row names lies."""
        return self.file.parent / name

    def summary(self) -> str:
        """How many rows are good, how many are left out, and the first few of these."""
        if not self.bad:
            return f"{self.file}: {len(self.rows)} rows"
        shown = "".join(f"\n  {row}" for row in self.bad[:SHOWN])
        more = f"\n  and {len(self.bad) - SHOWN} more" if len(self.bad) > SHOWN else ""
        return f"{self.file}: {len(self.rows)} rows, {len(self.bad)} bad ones left out:{shown}{more}"


SHOWN = 10
Ratings = Table[RatedClip]
Pairs = Table[RatedPair]


def read_ratings(file: Path) -> Ratings:
    """A ratings file; every clip is opened once. A second row of a clip is a bad one."""
    return _read(file, RatedClip, lambda row: os.path.normpath(row.clip))


def read_pairs(file: Path) -> Pairs:
    """A pairs file; every clip is opened once. The same pair a second time, either way round, is a bad row."""
    return _read(file, RatedPair, lambda row: " and ".join(sorted(map(os.path.normpath, (row.winner, row.loser)))))


def write_ratings(file: Path, rows: Iterable[RatedClip]) -> None:
    """Write a ratings file: a reader sees the old one or the new. Raises `StorageError`."""
    _write(file, rows)


def write_pairs(file: Path, rows: Iterable[RatedPair]) -> None:
    """Write a pairs file: a reader sees the old one or the new. Raises `StorageError`."""
    _write(file, rows)


def overall(ratings: Mapping[str, Mapping[str, float]]) -> float | None:
    """The mean over annotators of their means over dimensions, 1..5; None for a clip that nobody rated."""
    given = [fmean(mine.values()) for mine in ratings.values() if mine]
    return fmean(given) if given else None


def dimensions(rows: Iterable[RatedClip]) -> list[str]:
    """All dimensions that anybody rated, in the order in which they first come."""
    return list(dict.fromkeys(name for row in rows for given in row.ratings.values() for name in given))


def _write(file: Path, rows: Iterable[Row]) -> None:
    write_whole(file, "".join(row.model_dump_json() + "\n" for row in rows))


def _read(file: Path, kind: type[Kind], key: Callable[[Kind], str]) -> Table[Kind]:
    good: dict[str, tuple[int, Kind]] = {}
    bad: list[BadRow] = []
    opened: dict[Path, str | None] = {}
    for line, text in enumerate(_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = _row(text, kind)
            _check_files(row, file.parent, opened)
            name = key(row)
            if name in good:
                raise ValueError(f"{name}: line {good[name][0]} has it already")
            good[name] = line, row
        except ValueError as error:
            bad.append(BadRow(file, line, str(error)))
    if not good:
        raise ConfigError(f"{bad[0]}; no good row of {len(bad)}" if bad else f"{file}: no rows in it")
    lines, rows = zip(*good.values(), strict=True)
    return Table(file, rows, lines, tuple(bad))


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None


def _row(text: str, kind: type[Kind]) -> Kind:
    """`ValueError` in one line."""
    try:
        data: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        what = f"{name} = {json.dumps(first['input'])[:80]}" if name and not isinstance(first["input"], dict) else name
        raise ValueError(f"{what}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from None


def _check_files(row: Row, folder: Path, opened: dict[Path, str | None]) -> None:
    """`ValueError` for what is not there or cannot be opened; `opened` remembers files' faults, None for none."""
    clips, first_frame = row.files()
    for name, fault_of in [*((clip, _clip_fault) for clip in clips), (first_frame, _image_fault)]:
        if name is None:
            continue
        path = folder / name
        if path not in opened:
            opened[path] = fault_of(path)
        if fault := opened[path]:
            raise ValueError(f"{name}: {fault}")


def _clip_fault(path: Path) -> str | None:
    """Why a clip is of no use; its first and last frame are decoded."""
    try:
        data = path.read_bytes()
        count, _ = clip_length(data)
        if not count:
            return "a clip of zero frames"
        decode_frames(data, sorted({0, count - 1}))
    except OSError as error:
        return f"no readable clip: {error.strerror}"
    except ValueError as error:
        return f"no readable clip: {error}"
    return None


def _image_fault(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.verify()
    except UnidentifiedImageError:
        return "no readable image"
    except (OSError, SyntaxError, ValueError) as error:
        return f"no readable image: {getattr(error, 'strerror', None) or error}"
    return None
