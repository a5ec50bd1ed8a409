"""A ratings file as training data: clips, their prompts and mean ratings, and what links them.

The first frame of a clip without one is its frame 0 (`rewarders/first_frame.py`).
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.player import frames_at
from common.data.ratings import REAL, BadRow, RatedClip, Ratings, to_score
from common.data.video import decode_video
from common.digests import digest
from common.errors import ConfigError
from common.images import decode_image
from common.messages import Prompt
from rewarders.first_frame import reference_frame
from rewarders.training.pictures import fingerprint, groups

IMAGES = 4  # first frames in memory
EVERY = 10.0  # seconds between progress lines
FIRST_FRAME = "first frame"


class RatedDataset:
    """The rated rows of a ratings file."""

    def __init__(self, table: Ratings, log: Callable[[str], None] | None = None) -> None:
        """`log` gets lines of progress. Raises `ConfigError` if no clip is rated."""
        self.table, self._log = table, log
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
                yield i, decode_video(self.clip_bytes(i))[0]
            except ValueError as error:
                yield i, self.bad(i, str(error))

    def bad(self, i: int, why: str) -> BadRow:
        """Returns row `i` as a bad row, to be left out."""
        return BadRow(self.table.file, self._lines[self.rows[i].clip], f"{self.rows[i].clip}: {why}")

    def groups(self) -> np.ndarray:
        """Returns int ``[n]``: clips of the same prompt and first frame have equal numbers."""
        keys = [(prompt_text(row.prompt), frame) for row, frame in zip(self.rows, self._frames, strict=True)]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys])

    def leak_keys(self) -> list[frozenset[str]]:
        """Returns what each row must not share with another part of a split: prompt, first frame and character.

        Equal prompts (`prompt_text`) and equal pictures (`rewarders/training/pictures.py`) have equal keys.
        """
        return [
            frozenset((*self.text_keys(i), f"{FIRST_FRAME} {frame}")) for i, frame in enumerate(self._frames.tolist())
        ]

    def text_keys(self, i: int) -> Iterator[str]:
        """Yields the leak keys of row `i` that do not depend on other rows: prompt and character."""
        row = self.rows[i]
        yield f"prompt {prompt_text(row.prompt)}"
        if row.character is not None:
            yield f"character {row.character.casefold()}"

    def strata(self) -> list[tuple[str, ...]]:
        """Returns what each row should share evenly with all parts of a split: its action and its source."""
        return [tuple(f"{kind} {name}" for kind, name in _labels(row) if name) for row in self.rows]

    @cached_property
    def fingerprints(self) -> np.ndarray:
        """The first frames' fingerprints, uint8 ``[n, 2, LENGTH]``. Every file is decoded once, which takes minutes for
        thousands of frames.

        Raises `ConfigError` if one cannot be decoded any more.
        """
        first = {path: i for i, path in reversed(list(enumerate(map(self._frame_path, self.rows))))}
        found: dict[Path, np.ndarray] = {}
        said = time.monotonic()
        for path, i in first.items():
            found[path] = self._fingerprint(i)
            if self._log and time.monotonic() - said > EVERY:
                self._log(f"compared first frames: {len(found)}/{len(first)}")
                said = time.monotonic()
        return np.stack([found[self._frame_path(row)] for row in self.rows])

    def _frame_path(self, row: RatedClip) -> Path:
        return self.table.place(row.first_frame or row.clip)

    def _fingerprint(self, i: int) -> np.ndarray:
        try:
            prompt = self.prompt(i)
            if prompt.image is not None:
                return fingerprint(decode_image(prompt.image))
            return fingerprint(Image.fromarray(reference_frame(frames_at(self.clip_bytes(i), [0]), prompt)))
        except (OSError, ValueError) as error:
            raise ConfigError(str(self.bad(i, f"no first frame: {error}"))) from None

    @cached_property
    def _frames(self) -> np.ndarray:
        """int ``[n]``: rows whose first frames are the same picture have equal numbers."""
        return groups(self.fingerprints)


def prompt_text(prompt: str) -> str:
    """Returns what is compared of a caption: its letters and digits, whatever their case and Unicode form."""
    plain = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join("".join(one if one.isalnum() else " " for one in plain).split())


def _labels(row: RatedClip) -> tuple[tuple[str, str | None], ...]:
    return ("category", row.category), ("source", row.source)
