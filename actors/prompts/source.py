"""Prompt sources: the toon world, or a JSONL/CSV file of (first frame, text).

A source is a function of the ordinal alone, so that the exchange can admit, lease again and resume prompts by number:
`source(ordinal)` gives training prompts without end (files are repeated, reshuffled every epoch), and
`heldout(count, seed)` returns prompts for evaluation. `file_prompts` returns all rows of a file, for `douga sample`.

A prompt file has one prompt per line (`common/data/tables.py` says how files are read), with these columns, which the
first line of a CSV file names:

- `prompt`: the caption, a text. Required.
- `image`: the first frame, a path relative to the file. Required for image-to-video models.
- `id`, `character`, `category`: optional. The default id is FILE-LINE.
- `split`: `train` or `heldout`, optional. If no line has it, every 10th prompt is held out, in files of 20 or more
  prompts, and with it its repetitions. In smaller files none is, so evaluation needs its own prompts.

The whole file is checked when it is opened, with every picture, and all bad rows are named in one error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from actors.prompts.pictures import Tell, broken_pictures, silent
from actors.prompts.repetitions import Content, contents
from common.data.folders import find_file, same_form
from common.data.ray_jobs import unsent
from common.data.tables import BadRows, Columns, caption_of, not_a_text, printable, read_table, text_of, unread_columns
from common.errors import ConfigError
from common.files import exists
from common.images import first_frame_png
from common.messages import Prompt, Purpose
from common.seeds import epoch_order
from common.toon.prompts import ToonPrompts

HELD_OUT_EVERY = 10  # for files without a split column
SMALLEST_SPLIT = 20  # files with fewer prompts have no held-out ones
SPLITS = ("train", "heldout")
# `original` is the caption that `douga prompts rewrite` replaced; "" is a comma at the end of CSV lines
COLUMNS = {"prompt", "image", "id", "character", "category", "split", "original", ""}


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
    prompts: str, seed: int, needs_image: bool = True, size: tuple[int, int] | None = None, tell: Tell = silent
) -> PromptSource:
    """Open ``"toon"`` or a ``.jsonl``/``.csv`` file. `ConfigError` names file, line and fault of all its bad rows.

    With `size`, height and width of the model's clips, every prompt's image is the first frame itself, as PNG: what the
    model is conditioned on, what rewards compare with, and what people are shown. `tell` gets lines of progress.
    """
    return ToonPrompts(seed) if prompts == "toon" else FilePrompts(Path(prompts), seed, needs_image, size, tell)


@dataclass(frozen=True)
class Row:
    """One checked line of a prompt file."""

    line: int
    id: str
    text: str
    image: Path | None
    character: str | None
    category: str | None
    split: str | None


class FilePrompts:
    """Prompts of a JSONL or CSV file. All lines are checked at the start, so that a run never stops at prompt 900."""

    def __init__(
        self,
        file: Path,
        seed: int,
        needs_image: bool = True,
        size: tuple[int, int] | None = None,
        tell: Tell = silent,
    ) -> None:
        self.file, self._seed, self._size = file, seed, size
        self.rows = prompt_rows(file, needs_image, tell)
        self._train = [row for row in self.rows if row.split == "train"]
        self._heldout = [row for row in self.rows if row.split == "heldout"]

    def __call__(self, ordinal: int) -> Prompt:
        if not self._train:
            raise ConfigError(f"{self.file}: every prompt is held out; training needs some with split = train")
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
                f"{self.file}: no held-out prompts to evaluate on; give {SMALLEST_SPLIT} or more prompts, or a column "
                "split with the value heldout, or compare nothing (evaluation.prompts = 0, guardrails.prompts = 0; "
                "douga evaluate takes --split all)"
            )
        order = epoch_order(seed, 0, len(self._heldout))
        rows = [self._heldout[order[i % len(order)]] for i in range(count)]
        return [self._prompt(row, i, Purpose.EVAL) for i, row in enumerate(rows)]

    def _prompt(self, row: Row, ordinal: int, purpose: Purpose) -> Prompt:
        return _prompt(row, ordinal, purpose, self._size)


def file_prompts(
    file: Path,
    needs_image: bool = True,
    size: tuple[int, int] | None = None,
    split: str = "all",
    tell: Tell = silent,
) -> Iterator[Prompt]:
    """The prompts of a file in its order, each once. The ordinal is the row's place in the file, from 0.

    `split` is all, train or heldout. The whole file is checked before the first prompt is returned; see `open_prompts`
    for `size`, `tell` and errors.
    """
    return prompts_of(file, prompt_rows(file, needs_image, tell), size, split)


def one_prompt(text: str, image: Path | None, needs_image: bool, size: tuple[int, int]) -> Prompt:
    """The prompt of a command line. `size` is the height and width of the first frame. Raises `ConfigError`."""
    caption = caption_of("--text", text)
    if needs_image and image is None:
        raise ConfigError("--text: the model needs a first frame as well; give --image")
    if image is not None and not needs_image:
        raise ConfigError(f"--image {image}: the model takes no image")
    if image is not None and not image.is_file():
        raise ConfigError(f"--image {image}: no such file")
    return _prompt(Row(1, "text", caption, image, None, None, None), 0, Purpose.EVAL, size)


def prompts_of(file: Path, rows: Sequence[Row], size: tuple[int, int] | None, split: str = "all") -> Iterator[Prompt]:
    """`file_prompts` of the file's checked rows."""
    chosen = [(place, row) for place, row in enumerate(rows) if split in ("all", row.split)]
    if not chosen:
        raise ConfigError(f"{file}: no prompt with split = {split}")
    return (_prompt(row, place, Purpose.EVAL, size) for place, row in chosen)


def prompt_rows(file: Path, needs_image: bool = True, tell: Tell = silent) -> list[Row]:
    """The checked rows of a file in its order. Raises `ConfigError`; see `open_prompts`."""
    return [row for row, _ in _read_rows(file, "needed" if needs_image else "ignored", tell)]


def complete_rows(file: Path) -> list[tuple[Row, Columns]]:
    """The checked rows of a file in its order, each with all columns of its line, unknown ones too.

    A row's image is None if its line names none. Raises `ConfigError`.
    """
    return _read_rows(file, "optional", silent)


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


def _read_rows(file: Path, image: str, tell: Tell) -> list[tuple[Row, Columns]]:
    """All rows of a file, checked, each with its split and its columns. `image` is needed, optional or ignored.

    Raises `ConfigError` that names all bad rows.
    """
    bad, rows, ids = BadRows(file), [], {}
    for line, data in read_table(file, "prompt file", bad):
        try:
            row = _row(file, line, data, image)
            if first := ids.get(same_form(row.id)):
                raise ValueError(f"line {first} already has the id {row.id!r}")
        except ValueError as fault:
            bad.add(line, fault)
            continue
        ids[same_form(row.id)] = line
        rows.append((row, data))
    _check_pictures(file, [row for row, _ in rows], bad, tell)
    bad.check()
    if not rows:
        raise ConfigError(f"{file}: no prompts in it")
    read = COLUMNS - {"image"} if image == "ignored" else COLUMNS
    if unread := {name for _, data in rows for name in data if data[name]} - read:
        tell(unread_columns(file, unread))
    split = _with_split(file, [row for row, _ in rows], image)
    return list(zip(split, (data for _, data in rows), strict=True))


def _check_pictures(file: Path, rows: Sequence[Row], bad: BadRows, tell: Tell) -> None:
    faults = broken_pictures(file, dict.fromkeys(row.image for row in rows if row.image is not None), tell)
    for row in rows:
        if row.image in faults:
            bad.add(row.line, f"image {row.image}: {faults[row.image]}")


def _with_split(file: Path, rows: list[Row], image: str) -> list[Row]:
    """Rows with `split` set, from the column, or by position if no row has it. Repetitions are in the same split; rows
    whose pictures are still to be made are none.

    Raises `ConfigError` for rows of one caption and picture that the column puts into both splits.
    """
    every = HELD_OUT_EVERY if len(rows) >= SMALLEST_SPLIT and all(row.split is None for row in rows) else 0
    first: dict[Content, Row] = {}
    found, bad = [], BadRows(file)
    for place, (row, content) in enumerate(zip(rows, contents(rows), strict=True), start=1):
        chosen = replace(row, split="heldout" if every and place % every == 0 else row.split or SPLITS[0])
        unmade = image == "optional" and row.image is None
        same = chosen if unmade else first.setdefault(content, chosen)
        if same.split != chosen.split and not every:
            bad.add(row.line, f"split = {chosen.split}, but line {same.line} is the same prompt, and {same.split}")
        found.append(replace(chosen, split=same.split))
    bad.check()
    return found


def _row(file: Path, line: int, data: Columns, image: str) -> Row:
    """Raises `ValueError`."""
    for column in ("prompt", "image") if image == "needed" else ("prompt",):
        if column not in data:
            raise ValueError(f"no column {column!r}; the columns are {', '.join(map(str, data)) or 'none'}")
    if data["prompt"] is None:
        raise ValueError(not_a_text("prompt", None))
    text = text_of(data, "prompt", numbers=False)
    if text is None:
        raise ValueError("the prompt is empty")
    split = text_of(data, "split", numbers=False)
    if split not in (None, *SPLITS):
        raise ValueError(f"split = {split!r}; allowed: {', '.join(SPLITS)}")
    return Row(
        line=line,
        id=text_of(data, "id") or f"{file.stem}-{line}",
        text=text,
        image=None if image == "ignored" else _image(file.parent, data, image == "needed"),
        character=text_of(data, "character"),
        category=text_of(data, "category"),
        split=split,
    )


def _image(folder: Path, data: Columns, needed: bool) -> Path | None:
    """The path of a row's image, relative to `folder`. Raises `ValueError` if there is no such file."""
    name = text_of(data, "image", numbers=False)
    if name is None:
        if needed:
            raise ValueError("the image is empty")
        return None
    path = find_file(folder, name)
    if not (exists(path) and path.is_file()):
        raise ValueError(f"no image {path}{unsent(path)}")
    return path


def _first_frame(path: Path, size: tuple[int, int] | None) -> bytes:
    """An image file's content, as the first frame of a clip of `size` if that is given."""
    try:
        data = path.read_bytes()
        return data if size is None else first_frame_png(data, *size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{printable(str(path))}: {error}") from None
