"""A ratings file as training data: clips, their prompts and mean ratings, and a split without leaks.

Rows that share a first frame, a prompt or a character, directly or through other rows, form one group, and a group is
never split. So a head trained on one part has seen no first frame, caption or character of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from common.data.ratings import REAL, BadRow, RatedClip, Ratings, to_score
from common.data.video import decode_clip
from common.digests import digest
from common.errors import ConfigError
from common.messages import Prompt

SHARES = (0.7, 0.15, 0.15)  # training, validation, test
IMAGES = 4  # first frames in memory


@dataclass(frozen=True)
class Split:
    """Row indices of the three parts; no group has rows in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class RatedDataset:
    """The rated rows of a ratings file."""

    def __init__(self, table: Ratings) -> None:
        """Raises `ConfigError` if no clip is rated."""
        self.table = table
        self.rows = [row for row in table.rows if any(row.ratings.values())]
        if not self.rows:
            raise ConfigError(f"{table.file}: none of its {len(table.rows)} clips has a rating")
        self._lines = {row.clip: line for row, line in zip(table.rows, table.lines, strict=True)}
        # 30,000 rows have some 5,000 first frames of a megabyte each: only a few are kept.
        self._image = lru_cache(IMAGES)(lambda path: path.read_bytes())
        self._image_digest = cache(lambda path: digest(path.read_bytes()))

    def scores(self, dimension: str) -> np.ndarray:
        """Returns mean ratings as scores 0..100, ``[n]``; NaN where the dimension is not rated."""
        opinions = [row.mean_opinion(dimension) for row in self.rows]
        return np.array([np.nan if one is None else to_score(one) for one in opinions])

    def candidates(self) -> np.ndarray:
        """Returns which clips a model generated, bool ``[n]``."""
        return np.array([row.source != REAL for row in self.rows])

    def prompt(self, i: int) -> Prompt:
        """Returns the prompt of clip `i`; its first frame is read now and keeps its file's format."""
        row = self.rows[i]
        return Prompt(
            ordinal=i,
            id=row.clip,
            text=row.prompt,
            image=None if row.first_frame is None else self._image(self.table.place(row.first_frame)),
            character=row.character,
            category=row.category,
        )

    def by_first_frame(self, rows: Iterable[int]) -> list[int]:
        """Orders `rows` so that those of one first frame follow each other: `prompt` then reads each frame once."""
        groups: dict[str | None, list[int]] = {}
        for i in rows:
            groups.setdefault(self.rows[i].first_frame, []).append(int(i))
        return [i for group in groups.values() for i in group]

    def first_frame_digest(self, i: int) -> str:
        """Returns the digest of the first frame's file, or of no bytes. A file is read once and not kept."""
        frame = self.rows[i].first_frame
        return digest(b"") if frame is None else self._image_digest(self.table.place(frame))

    def clip_bytes(self, i: int) -> bytes:
        """Returns the file of clip `i`."""
        return self.table.place(self.rows[i].clip).read_bytes()

    def clips(self, rows: Iterable[int]) -> Iterator[tuple[int, np.ndarray | BadRow]]:
        """Yields (index, uint8 ``[F, H, W, 3]``), or the bad row if a clip cannot be decoded completely."""
        for i in rows:
            try:
                yield i, decode_clip(self.clip_bytes(i))
            except ValueError as error:
                yield i, self.bad(i, str(error))

    def bad(self, i: int, why: str) -> BadRow:
        """Returns row `i` as a bad row, to be left out."""
        return BadRow(self.table.file, self._lines[self.rows[i].clip], f"{self.rows[i].clip}: {why}")

    def groups(self) -> np.ndarray:
        """Returns int ``[n]``: clips of the same prompt and first frame have equal numbers."""
        keys = [
            tuple(sorted(one for one in leak_keys if not one.startswith("character"))) for leak_keys in self.leak_keys()
        ]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys])

    def leak_keys(self) -> list[frozenset[str]]:
        """Returns what each row must not share with another part of the split: prompt, first frame and character."""
        return [frozenset(self._leak_keys(i, row)) for i, row in enumerate(self.rows)]

    def _leak_keys(self, i: int, row: RatedClip) -> Iterator[str]:
        yield f"prompt {' '.join(row.prompt.lower().split())}"
        if row.character is not None:
            yield f"character {row.character.lower()}"
        if row.first_frame is not None:
            yield f"first frame {self.first_frame_digest(i)}"


def split(leak_keys: Sequence[frozenset[str]], seed: int, where: str) -> Split:
    """Assigns the groups, largest first, to the part that is furthest below its share in `SHARES`.

    Raises `ConfigError`, beginning with `where`, if the rows form fewer than three groups.
    """
    group = _group_numbers(leak_keys)
    sizes = np.bincount(group)
    if len(sizes) < len(SHARES):
        raise ConfigError(
            f"{where}: {len(leak_keys)} rated clips form {len(sizes)} groups that share no first frame, prompt or "
            f"character; training, validation and test need {len(SHARES)}{_largest_group_hint(leak_keys)}"
        )
    order = np.lexsort((np.random.default_rng(seed).random(len(sizes)), -sizes))
    parts: list[list[int]] = [[] for _ in SHARES]
    for one in order:
        held = [sizes[part].sum() / (share * len(leak_keys)) for part, share in zip(parts, SHARES, strict=True)]
        parts[int(np.argmin(held))].append(int(one))
    return Split(*(np.flatnonzero(np.isin(group, part)) for part in parts))


def unseen(leak_keys: Sequence[frozenset[str]], seen: Iterable[str]) -> np.ndarray:
    """Returns the indices of rows that share none of their hashed leak keys with `seen`."""
    known = set(seen)
    return np.array([i for i, one in enumerate(leak_keys) if known.isdisjoint(hash_keys(one))], int)


def hash_keys(leak_keys: Iterable[str]) -> set[str]:
    """Hashes leak keys, to store them briefly and without their text."""
    return {digest(key.encode())[:16] for key in leak_keys}


def _group_numbers(leak_keys: Sequence[frozenset[str]]) -> np.ndarray:
    """Returns each row's group number: the connected components of the graph of rows and leak keys."""
    names = {key: i for i, key in enumerate(dict.fromkeys(key for one in leak_keys for key in one))}
    edges = [(row, len(leak_keys) + names[key]) for row, one in enumerate(leak_keys) for key in one]
    rows, columns = np.array(edges).T
    nodes = len(leak_keys) + len(names)
    _, component = connected_components(csr_array((np.ones(len(edges)), (rows, columns)), (nodes, nodes)), False)
    return np.unique(component[: len(leak_keys)], return_inverse=True)[1]


def _largest_group_hint(leak_keys: Sequence[frozenset[str]]) -> str:
    """Names the leak key that most rows share."""
    counts: dict[str, int] = {}
    for key in (key for one in leak_keys for key in one):
        counts[key] = counts.get(key, 0) + 1
    most = max(counts, key=lambda key: counts[key])
    return f" ({counts[most]} share the {most[:60]!r})" if counts[most] > 1 else ""
