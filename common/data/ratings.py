"""Files of rated clips and pairs. `douga annotate` writes them; reward training reads them. Imports no torch.

```
ratings.jsonl   {"clip": "clips/0001.mp4", "first_frame": "frames/0001.png", "prompt": "a robot walks right",
                 "character": "robot", "category": "walk", "source": "cogvideox-5b", "seed": 17,
                 "ratings": {"alice": {"smoothness": 4, "motion": 5}, "bob": {"smoothness": 3}}}
pairs.jsonl     {"prompt": "a robot walks right", "first_frame": "frames/0001.png", "chosen": "clips/0001.mp4",
                 "rejected": "clips/0002.mp4", "chosen_rating": 4.5, "rejected_rating": 2, "category": "walk",
                 "annotators": 2}
                 and, if the rejected clip was made for another caption or image: "rejected_prompt": "a cat walks left",
                 "rejected_first_frame": "frames/0002.png"
```

One row per clip or pair; paths are relative to the file. `source` is the generator that made the clip, or `REAL` for a
real video; `seed` is the generator's, if known. A rating is a number from 1 (worst) to 5 (best); annotators may leave
out dimensions, and a clip without ratings has an empty map. Dimension names are arbitrary.

Bad rows are skipped and listed with file and line (`Table.bad`). A file without any good row is a `ConfigError`.
"""

from __future__ import annotations

import filecmp
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from common.data.folders import find_file
from common.data.player import timeline
from common.data.ray_jobs import unsent
from common.data.tables import parse_json, printable, read_text, stripped, unwritable
from common.errors import ConfigError, one_per_line
from common.files import read_file, write_whole
from common.images import decode_image

LOWEST, HIGHEST = 1.0, 5.0
REAL = "real"  # `source` of a clip that was not generated
SCORE_PER_POINT = 25.0  # a score is 0..100, a rating 1..5

Rating = Annotated[float, Field(strict=True, ge=LOWEST, le=HIGHEST, allow_inf_nan=False)]
NonEmpty = Annotated[str, Field(min_length=1)]
Visible = BeforeValidator(lambda given: stripped(given) if isinstance(given, str) else given)
Caption = Annotated[str, Field(min_length=1), Visible]


class Row(BaseModel, ABC):
    """One line of a file, immutable. Unknown columns are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {}  # column of an older version -> its name now

    @abstractmethod
    def files(self) -> tuple[Sequence[str], Sequence[str]]:
        """The clips and the images that the row refers to. These files must exist."""


class RatedClip(Row):
    """One clip, the prompt it was made for, and its ratings: annotator -> dimension -> rating."""

    clip: NonEmpty
    first_frame: NonEmpty | None = None
    prompt: Caption
    character: NonEmpty | None = None
    category: NonEmpty | None = None
    source: NonEmpty
    seed: int | None = None
    ratings: dict[NonEmpty, dict[NonEmpty, Rating]] = {}

    def files(self) -> tuple[Sequence[str], Sequence[str]]:
        """See `Row.files`."""
        return [self.clip], [self.first_frame] if self.first_frame else []

    def opinions(self, dimension: str) -> list[float]:
        """All ratings of a dimension, 1..5, in the annotators' order; empty if nobody rated it."""
        return [given[dimension] for given in self.ratings.values() if dimension in given]

    def mean_opinion(self, dimension: str) -> float | None:
        """The mean of the annotators' ratings, 1..5; None if nobody rated it."""
        opinions = self.opinions(dimension)
        return fmean(opinions) if opinions else None


class RatedPair(Row):
    """Two clips, of which people preferred `chosen`; with ratings (1..5) if they were made from these.

    Without `rejected_prompt` both clips were made for `prompt` and `first_frame`. With it, the rejected clip was made
    for a caption and an image of its own (no `rejected_first_frame`: it starts with its own first frame).
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "winner": "chosen",
        "loser": "rejected",
        "winner_rating": "chosen_rating",
        "loser_rating": "rejected_rating",
    }

    prompt: Caption
    first_frame: NonEmpty | None = None
    chosen: NonEmpty
    rejected: NonEmpty
    rejected_prompt: Caption | None = None
    rejected_first_frame: NonEmpty | None = None
    chosen_rating: Rating | None = None
    rejected_rating: Rating | None = None
    category: NonEmpty | None = None
    annotators: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> RatedPair:
        if os.path.normpath(self.chosen) == os.path.normpath(self.rejected):
            raise ValueError(f"chosen and rejected are the same clip, {self.chosen}")
        if self.rejected_first_frame and not self.rejected_prompt:
            raise ValueError("rejected_first_frame needs rejected_prompt: they describe the rejected clip together")
        best, worst = self.chosen_rating, self.rejected_rating
        if best is not None and worst is not None and best <= worst:
            raise ValueError(f"chosen_rating {best:g} is not above rejected_rating {worst:g}")
        return self

    def files(self) -> tuple[Sequence[str], Sequence[str]]:
        """See `Row.files`."""
        images = [one for one in (self.first_frame, self.rejected_first_frame) if one]
        return [self.chosen, self.rejected], images


def to_score(rating: float) -> float:
    """Convert a rating 1..5 to a score 0..100."""
    return (rating - LOWEST) * SCORE_PER_POINT


def to_rating(score: float) -> float:
    """Convert a score 0..100 to a rating 1..5."""
    return score / SCORE_PER_POINT + LOWEST


@dataclass(frozen=True)
class BadRow:
    """A skipped row, and the reason."""

    file: Path
    line: int
    why: str

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.line}: {self.why}")


Kind = TypeVar("Kind", bound=Row)


@dataclass(frozen=True)
class Table(Generic[Kind]):
    """The good rows of a file in file order, their line numbers, and the bad rows."""

    file: Path
    rows: tuple[Kind, ...]
    lines: tuple[int, ...]
    bad: tuple[BadRow, ...]

    def place(self, name: str) -> Path:
        """The path of a file that a row refers to."""
        return find_file(self.file.parent, name)

    def summary(self) -> str:
        """The number of good and of skipped rows, and the first few skipped ones."""
        if not self.bad:
            return f"{self.file}: {len(self.rows)} rows"
        return one_per_line(f"{self.file}: {len(self.rows)} rows, {len(self.bad)} bad rows skipped", self.bad, SHOWN)


SHOWN = 10
Ratings = Table[RatedClip]
Pairs = Table[RatedPair]


def read_ratings(file: Path) -> Ratings:
    """Read a ratings file. Every clip is opened to check it. A second row for the same clip is a bad row."""
    return _read(file, RatedClip, lambda row: os.path.normpath(row.clip))


def read_pairs(file: Path) -> Pairs:
    """Read a pairs file. Every clip is opened to check it. A repeated pair, in either order, is a bad row."""
    return _read(file, RatedPair, lambda row: " and ".join(sorted(map(os.path.normpath, (row.chosen, row.rejected)))))


def write_ratings(file: Path, rows: Iterable[RatedClip]) -> None:
    """Write a ratings file atomically. Raises `StorageError`."""
    _write(file, rows)


def write_pairs(file: Path, rows: Iterable[RatedPair]) -> None:
    """Write a pairs file atomically. Raises `StorageError`."""
    _write(file, rows)


def overall(ratings: Mapping[str, Mapping[str, float]]) -> float | None:
    """The mean over annotators of each one's mean over dimensions, 1..5; None if nobody rated the clip."""
    given = [fmean(mine.values()) for mine in ratings.values() if mine]
    return fmean(given) if given else None


def dimensions(rows: Iterable[RatedClip]) -> list[str]:
    """All rated dimensions, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for given in row.ratings.values() for name in given))


def _write(file: Path, rows: Iterable[Row]) -> None:
    write_whole(file, "".join(row.model_dump_json() + "\n" for row in rows))


def _read(file: Path, kind: type[Kind], key: Callable[[Kind], str]) -> Table[Kind]:
    good: dict[str, tuple[int, Kind]] = {}
    bad: list[BadRow] = []
    opened: dict[Path, str | None] = {}
    for line, text in enumerate(read_text(file, "").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = _row(text, kind, f"{file}:{line}")
            _check_files(row, file.parent, opened)
            name = key(row)
            if name in good:
                raise ValueError(f"{name}: already in line {good[name][0]}")
            good[name] = line, row
        except ConfigError:
            raise  # the columns of an older version
        except ValueError as error:
            bad.append(BadRow(file, line, str(error)))
    if not good:
        raise ConfigError(f"{bad[0]}; all {len(bad)} rows are bad" if bad else f"{file}: no rows in it")
    lines, rows = zip(*good.values(), strict=True)
    return Table(file, rows, lines, tuple(bad))


def _row(text: str, kind: type[Kind], where: str) -> Kind:
    """Parse a row. Raises `ValueError` with a one-line message, and `ConfigError` for renamed columns."""
    try:
        data = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if isinstance(data, dict) and (fault := unwritable(data)):
        raise ValueError(fault)
    old = [name for name in kind.renamed if isinstance(data, dict) and name in data]
    if old:
        now = ", ".join(kind.renamed[name] for name in old)
        raise ConfigError(f"{where}: renamed columns: {', '.join(old)}; write {now} instead")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        what = f"{name} = {json.dumps(first['input'])[:80]}" if name and not isinstance(first["input"], dict) else name
        raise ValueError(f"{what}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from None


def _check_files(row: Row, folder: Path, opened: dict[Path, str | None]) -> None:
    """Raise `ValueError` for a missing or unreadable file, or two clips that are one. `opened` caches the result per
    file, None if it is good."""
    clips, images = row.files()
    for name, fault_of in [*((clip, _clip_fault) for clip in clips), *((image, _image_fault) for image in images)]:
        path = find_file(folder, name)
        if path not in opened:
            opened[path] = fault_of(path)
        if fault := opened[path]:
            raise ValueError(f"{name}: {fault}")
    if len(clips) > 1 and filecmp.cmp(*(find_file(folder, clip) for clip in clips), shallow=False):
        raise ValueError(f"{' and '.join(clips)} are the same video")


def _clip_fault(path: Path) -> str | None:
    """What is wrong with a clip, or None. Decodes all of it."""
    try:
        timeline(read_file(path))
    except OSError as error:
        return f"not a readable clip: {error.strerror}{unsent(path)}"
    except ValueError as error:
        return f"not a readable clip: {error}"
    return None


def _image_fault(path: Path) -> str | None:
    try:
        decode_image(read_file(path))
    except OSError as error:
        return f"not a readable image: {error.strerror}{unsent(path)}"
    except ValueError as error:
        return f"not a readable image: {error}"
    return None
