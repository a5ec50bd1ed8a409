"""Prompt sources: the toon world, or a JSONL/CSV file of (first frame, text).

A source is a function of the ordinal alone, so that the exchange can admit, lease again and resume prompts by number:
`source(ordinal)` gives training prompts without end (files are repeated, reshuffled every epoch), and
`heldout(count, seed)` returns prompts for evaluation. `file_prompts` returns all rows of a file, for `douga sample`.

A prompt file has one prompt per line, with these columns (the first line of a CSV file names them):

- `prompt`: the caption. Required.
- `image`: the first frame, a path relative to the file. Required for image-to-video models.
- `id`, `character`, `category`: optional. The default id is FILE-LINE.
- `split`: `train` or `heldout`, optional. If no line has it, every 10th prompt is held out, in files of 20 or more
  prompts. In smaller files none is, so evaluation needs its own prompts.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from common.errors import ConfigError
from common.images import decode_image, first_frame_png
from common.messages import Prompt, Purpose
from common.seeds import epoch_order
from common.toon.prompts import ToonPrompts

HELD_OUT_EVERY = 10  # for files without a split column
SMALLEST_SPLIT = 20  # files with fewer prompts have no held-out ones


class PromptSource(Protocol):
    """A source of prompts, for the exchange and for evaluation."""

    def __call__(self, ordinal: int) -> Prompt:
        """The training prompt with this ordinal, >= 0. Raises `ConfigError` if there are none."""
        ...

    @property
    def training_prompts(self) -> int | None:
        """How many training prompts there are before they repeat; None if they never do."""
        ...

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """`count` evaluation prompts, with ordinals 0 .. count-1, that never occur in training."""
        ...


def open_prompts(
    prompts: str, seed: int, needs_image: bool = True, size: tuple[int, int] | None = None
) -> PromptSource:
    """Open ``"toon"`` or a ``.jsonl``/``.csv`` file. `ConfigError` names file, line and fault of a bad file.

    With `size`, height and width of the model's clips, every prompt's image is the first frame itself, as PNG: what the
    model is conditioned on, what rewards compare with, and what people are shown.
    """
    return ToonPrompts(seed) if prompts == "toon" else FilePrompts(Path(prompts), seed, needs_image, size)


@dataclass(frozen=True)
class Row:
    """One checked line of a prompt file."""

    id: str
    text: str
    image: Path | None
    character: str | None
    category: str | None
    split: str | None


class FilePrompts:
    """Prompts of a JSONL or CSV file. All lines are checked at the start, so that a run never stops at prompt 900."""

    def __init__(self, file: Path, seed: int, needs_image: bool = True, size: tuple[int, int] | None = None) -> None:
        self._file, self._seed, self._size = file, seed, size
        rows = _read_rows(file, needs_image)
        self._train = [row for row in rows if row.split == "train"]
        self._heldout = [row for row in rows if row.split == "heldout"]

    def __call__(self, ordinal: int) -> Prompt:
        if not self._train:
            raise ConfigError(f"{self._file}: every prompt is held out; training needs some with split = train")
        epoch, place = divmod(ordinal, len(self._train))
        order = epoch_order(self._seed, epoch, len(self._train))
        return self._prompt(self._train[order[place]], ordinal, Purpose.TRAIN)

    @property
    def training_prompts(self) -> int:
        """See `PromptSource.training_prompts`."""
        return len(self._train)

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """Held-out prompts in shuffled order, repeated if the file has fewer than `count`."""
        if not self._heldout:
            raise ConfigError(
                f"{self._file}: no held-out prompts to evaluate on; give {SMALLEST_SPLIT} or more prompts, "
                "or a column split with the value heldout"
            )
        order = epoch_order(seed, 0, len(self._heldout))
        rows = [self._heldout[order[i % len(order)]] for i in range(count)]
        return [self._prompt(row, i, Purpose.EVAL) for i, row in enumerate(rows)]

    def _prompt(self, row: Row, ordinal: int, purpose: Purpose) -> Prompt:
        return _prompt(row, ordinal, purpose, self._size)


def file_prompts(
    file: Path, needs_image: bool = True, size: tuple[int, int] | None = None, split: str = "all"
) -> Iterator[Prompt]:
    """The prompts of a file in its order, each once. The ordinal is the row's place in the file, from 0.

    `split` is all, train or heldout. The whole file is checked before the first prompt is returned; see `open_prompts`
    for `size` and errors.
    """
    chosen = [(place, row) for place, row in enumerate(_read_rows(file, needs_image)) if split in ("all", row.split)]
    if not chosen:
        raise ConfigError(f"{file}: no prompt with split = {split}")
    return (_prompt(row, place, Purpose.EVAL, size) for place, row in chosen)


def complete_rows(file: Path) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The checked rows of a file in its order, each with all columns of its line, unknown ones too.

    A row's image is None if its line names none. Raises `ConfigError`.
    """
    lines = list(read_table(file, "prompt file"))
    for row, (line, data) in zip(_read_rows(file, needs_image=False), lines, strict=True):
        name = _optional(data, "image")
        yield (row if name is None else replace(row, image=image_file(f"{file}:{line}", file.parent, name))), data


def portable_row(row: Row, data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row of `complete_rows` as columns for a prompt file in another folder: its image's path is from there.

    `id` and `split` are always written: their defaults depend on the file's name and on the places of its rows, and
    held-out prompts must stay held out.
    """
    image = {} if row.image is None else {"image": _path_from(folder, row.image, str(data["image"]).strip())}
    return {**data, **image, "id": row.id, "split": row.split}


def _path_from(folder: Path, image: Path, name: str) -> str:
    """The path of `image` from `folder`; absolute names stay. Links are resolved: ``..`` does not go back over them."""
    if Path(name).is_absolute():
        return name
    return os.path.relpath(image.parent.resolve() / image.name, folder.resolve())


def _prompt(row: Row, ordinal: int, purpose: Purpose, size: tuple[int, int] | None) -> Prompt:
    image = None if row.image is None else _first_frame(row.image, size)
    return Prompt(ordinal, row.id, row.text, image, purpose, row.character, row.category)


def _read_rows(file: Path, needs_image: bool) -> list[Row]:
    """All rows of a file, checked, each with its split. Raises `ConfigError`."""
    rows: dict[str, Row] = {}
    for line, data in read_table(file, "prompt file"):
        row = _row(file, line, data, needs_image)
        if row.id in rows:
            raise ConfigError(f"{file}:{line}: another prompt already has the id {row.id!r}")
        rows[row.id] = row
    if not rows:
        raise ConfigError(f"{file}: no prompts in it")
    return _with_split(list(rows.values()))


def _with_split(rows: list[Row]) -> list[Row]:
    """Rows with `split` set, from the column, or by position if no row has it."""
    every = HELD_OUT_EVERY if len(rows) >= SMALLEST_SPLIT and all(row.split is None for row in rows) else 0
    return [
        replace(row, split="heldout" if every and place % every == 0 else row.split or "train")
        for place, row in enumerate(rows, start=1)
    ]


def _row(file: Path, line: int, data: dict[str, Any], needs_image: bool) -> Row:
    where = f"{file}:{line}"
    for column in ("prompt", "image") if needs_image else ("prompt",):
        if column not in data:
            raise ConfigError(f"{where}: no column '{column}'; the columns are {', '.join(map(str, data)) or 'none'}")
    text = str(data["prompt"] or "").strip()
    if not text:
        raise ConfigError(f"{where}: the prompt is empty")
    split = _optional(data, "split")
    if split not in (None, "train", "heldout"):
        raise ConfigError(f"{where}: split = {split!r}; allowed: train, heldout")
    return Row(
        id=_optional(data, "id") or f"{file.stem}-{line}",
        text=text,
        image=image_file(where, file.parent, _optional(data, "image")) if needs_image else None,
        character=_optional(data, "character"),
        category=_optional(data, "category"),
        split=split,
    )


def _optional(data: dict[str, Any], column: str) -> str | None:
    value = data.get(column)
    return None if value is None or not str(value).strip() else str(value).strip()


def image_file(where: str, folder: Path, name: str | None) -> Path:
    """The path of a row's image, relative to `folder`. Raises `ConfigError`, from `where`, if it is not an image."""
    if name is None:
        raise ConfigError(f"{where}: the image is empty")
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{where}: no image {path}")
    try:
        decode_image(path.read_bytes())
    except (OSError, ValueError) as error:
        why = str(error).removeprefix("broken image: ")
        raise ConfigError(f"{where}: broken image {path}: {why}") from None
    return path


def _first_frame(path: Path, size: tuple[int, int] | None) -> bytes:
    """An image file's content, as the first frame of a clip of `size` if that is given."""
    try:
        data = path.read_bytes()
        return data if size is None else first_frame_png(data, *size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def read_table(file: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, columns) for each line of a ``.jsonl`` or ``.csv`` file. `what` names the file in errors."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if file.suffix not in readers:
        raise ConfigError(f"{what} {file}: allowed are {' and '.join(readers)}")
    try:
        text = file.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} {file}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{what} {file}: cannot be read: {error}") from None
    return readers[file.suffix](file, text)


def _read_jsonl(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            data = json.loads(content)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file}:{line}: not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f'{file}:{line}: expected an object like {{"image": ..., "prompt": ...}}')
        yield line, data


def _read_csv(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for data in reader:
            if None in data or None in data.values():
                raise ConfigError(f"{file}:{reader.line_num}: expected {len(reader.fieldnames or ())} columns")
            yield reader.line_num, data
    except csv.Error as error:
        raise ConfigError(f"{file}:{reader.line_num}: not valid CSV: {error}") from None
