"""A ratings file as what rewards learn from: clips, their prompts and mean opinions, and a split that shares nothing.

Rows that share a first frame, a prompt or a character, directly or through others, are one group, and a group is never
split. Who has seen a clip in training has then seen nothing of the test: neither the picture it starts from, nor the
words, nor whom it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from common.data.ratings import REAL, BadRow, RatedClip, Ratings, to_score
from common.data.video import decode_clip
from common.digests import digest
from common.errors import ConfigError
from common.messages import Prompt

SHARES = (0.7, 0.15, 0.15)  # training, validation, test


@dataclass(frozen=True)
class Split:
    """Indices of rows; no group has rows in two parts."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Rated:
    """The rated rows of a ratings file."""

    def __init__(self, table: Ratings) -> None:
        """`ConfigError` when nobody rated any clip."""
        self.table = table
        self.rows = [row for row in table.rows if any(row.ratings.values())]
        if not self.rows:
            raise ConfigError(f"{table.file}: none of its {len(table.rows)} clips is rated")
        self._lines = {row.clip: line for row, line in zip(table.rows, table.lines, strict=True)}

    def scores(self, dimension: str) -> np.ndarray:
        """Mean opinions as scores 0..100, ``[n]``; NaN where nobody rated the dimension."""
        opinions = [row.mean_opinion(dimension) for row in self.rows]
        return np.array([np.nan if one is None else to_score(one) for one in opinions])

    def candidates(self) -> np.ndarray:
        """Which clips a model made, bool ``[n]``."""
        return np.array([row.source != REAL for row in self.rows])

    def prompts(self) -> list[Prompt]:
        """What each clip was made for; the first frame in its file's own format."""
        return [
            Prompt(
                ordinal=i,
                id=row.clip,
                text=row.prompt,
                image=None if row.first_frame is None else self.table.place(row.first_frame).read_bytes(),
                character=row.character,
                category=row.category,
            )
            for i, row in enumerate(self.rows)
        ]

    def clip_bytes(self, i: int) -> bytes:
        """The file of clip `i`."""
        return self.table.place(self.rows[i].clip).read_bytes()

    def clips(self, rows: Iterable[int]) -> Iterator[tuple[int, np.ndarray | BadRow]]:
        """(index, uint8 ``[F, H, W, 3]``) one after the other, or why a clip cannot be decoded to its end."""
        for i in rows:
            try:
                yield i, decode_clip(self.clip_bytes(i))
            except ValueError as error:
                yield i, self.bad(i, str(error))

    def bad(self, i: int, why: str) -> BadRow:
        """Row `i` as one that is left out."""
        return BadRow(self.table.file, self._lines[self.rows[i].clip], f"{self.rows[i].clip}: {why}")

    def groups(self) -> np.ndarray:
        """Which clips were made for the same prompt and first frame: equal numbers, int ``[n]``."""
        keys = [tuple(sorted(one for one in marks if not one.startswith("character"))) for marks in self.marks()]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys])

    def marks(self) -> list[frozenset[str]]:
        """What each row must not share with another part of the split: its prompt, first frame and character."""
        pictures: dict[Path, str] = {}
        return [frozenset(self._marks(row, pictures)) for row in self.rows]

    def _marks(self, row: RatedClip, pictures: dict[Path, str]) -> Iterator[str]:
        yield f"prompt {' '.join(row.prompt.lower().split())}"
        if row.character is not None:
            yield f"character {row.character.lower()}"
        if row.first_frame is not None:
            path = self.table.place(row.first_frame)
            pictures.setdefault(path, digest(path.read_bytes()))
            yield f"first frame {pictures[path]}"


def split(marks: Sequence[frozenset[str]], seed: int, where: str) -> Split:
    """Groups, the largest first, each to the part that lacks most of its share of `SHARES`.

    `ConfigError`, which begins with `where`, when the rows form fewer than three groups.
    """
    group = _linked(marks)
    sizes = np.bincount(group)
    if len(sizes) < len(SHARES):
        raise ConfigError(
            f"{where}: {len(marks)} rated clips form {len(sizes)} groups that share no first frame, prompt or "
            f"character; training, validation and test need {len(SHARES)}{_hint(marks)}"
        )
    order = np.lexsort((np.random.default_rng(seed).random(len(sizes)), -sizes))
    parts: list[list[int]] = [[] for _ in SHARES]
    for one in order:
        held = [sizes[part].sum() / (share * len(marks)) for part, share in zip(parts, SHARES, strict=True)]
        parts[int(np.argmin(held))].append(int(one))
    return Split(*(np.flatnonzero(np.isin(group, part)) for part in parts))


def unseen(marks: Sequence[frozenset[str]], seen: Iterable[str]) -> np.ndarray:
    """Indices of the rows that share nothing with what was `seen`: hashed marks, as `hashed` makes them."""
    known = set(seen)
    return np.array([i for i, one in enumerate(marks) if known.isdisjoint(hashed(one))], int)


def hashed(marks: Iterable[str]) -> set[str]:
    """Marks in a form to keep: short, and nobody's words."""
    return {digest(mark.encode())[:16] for mark in marks}


def _linked(marks: Sequence[frozenset[str]]) -> np.ndarray:
    """Number of the group of each row: rows and marks are the nodes of a graph, groups its components."""
    names = {mark: i for i, mark in enumerate(dict.fromkeys(mark for one in marks for mark in one))}
    edges = [(row, len(marks) + names[mark]) for row, one in enumerate(marks) for mark in one]
    rows, columns = np.array(edges).T
    nodes = len(marks) + len(names)
    _, component = connected_components(csr_array((np.ones(len(edges)), (rows, columns)), (nodes, nodes)), False)
    return np.unique(component[: len(marks)], return_inverse=True)[1]


def _hint(marks: Sequence[frozenset[str]]) -> str:
    """The mark that links most rows."""
    counts: dict[str, int] = {}
    for mark in (mark for one in marks for mark in one):
        counts[mark] = counts.get(mark, 0) + 1
    most = max(counts, key=lambda mark: counts[mark])
    return f" ({counts[most]} share the {most[:60]!r})" if counts[most] > 1 else ""
