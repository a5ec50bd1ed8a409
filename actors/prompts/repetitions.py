"""Which rows of a prompt file are the same prompt: one caption and one picture, under whatever name.

A prompt in both splits would be trained on and compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.data.folders import same_form
from common.digests import digest
from common.files import read_file

if TYPE_CHECKING:
    from actors.prompts.pictures import Tell
    from actors.prompts.source import Row

Content = tuple[str, Path | str | None]


def contents(rows: Sequence[Row]) -> list[Content]:
    """The caption and the picture of each row: equal for the same prompt. Raises `OSError`.

    Only pictures that have a caption and a size in common are read.
    """
    named: list[tuple[str, Path | None]] = [(same_form(row.text), row.image and row.image.resolve()) for row in rows]
    sizes = {one: (one[0], one[1].stat().st_size) for one in set(named) if one[1] is not None}
    alike = Counter(sizes.values())
    found: dict[tuple[str, Path | None], Content] = {}
    for text, path in dict.fromkeys(named):
        read = path is not None and alike[sizes[text, path]] > 1
        found[text, path] = (text, digest(read_file(path))) if read and path else (text, path)
    return [found[one] for one in named]


def repetitions(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows whose caption and picture an earlier row has: (row, that earlier row)."""
    first: dict[Content, Row] = {}
    firsts = [first.setdefault(content, row) for content, row in zip(contents(rows), rows, strict=True)]
    return [(row, same) for row, same in zip(rows, firsts, strict=True) if same is not row]


def report_repetitions(file: str, rows: Sequence[Row], tell: Tell) -> None:
    """Tells how many rows of a prompt file have the caption and the image of an earlier one."""
    if found := repetitions(rows):
        row, first = found[0]
        tell(
            f"{file}: {len(found)} of {len(rows)} prompts repeat another one, caption and image; "
            f"first line {row.line}, as line {first.line}"
        )
