"""Offline data: human preference pairs (HuViDPO) and real clips for fine-tuning. Imports no torch.

```
pairs.jsonl      a pair a row                       reward 100 and 0, or the ratings that the row has
ratings.jsonl    rated clips ──> two of a category whose mean opinions differ; without categories two of a prompt
a folder         clips with captions, real ones ──> each clip alone, for ``algorithm.name = "sft"``
```

`OfflinePairs` is called with an ordinal and returns that pair. Pairs come in random order, reshuffled every epoch. The
file must not change during the run.

The algorithm decides how to train on the pairs; `learner/algorithms/human_pairs.py` is HuViDPO.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from common.config import ModelConfig
from common.data.caption_files import CaptionFiles
from common.data.folders import files_of
from common.data.player import timeline
from common.data.ratings import BadRow, Pairs, RatedPair, Ratings, overall, read_pairs, read_ratings, to_score
from common.data.tables import read_text
from common.data.video import VIDEO_SUFFIXES
from common.digests import digest
from common.errors import ConfigError, bad_input
from common.files import read_file
from common.seeds import epoch_order

CHOSEN_SCORE, REJECTED_SCORE = 100.0, 0.0  # for pairs without ratings
PAIRS_PER_CLIP = 32  # of a group with more than twice as many clips


@dataclass(frozen=True)
class PairClip:
    """One clip of a pair, with the prompt it was made for."""

    clip: Path
    text: str
    first_frame: Path | None  # None: the clip's own first frame
    score: float  # 0..100


@dataclass(frozen=True)
class OfflinePair:
    """A chosen and a rejected clip; a clip of a folder has no rejected one."""

    chosen: PairClip
    rejected: PairClip | None
    category: str | None

    @property
    def clips(self) -> tuple[PairClip, ...]:
        """The candidates of the group that the pair becomes, the chosen one first."""
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)


class OfflinePairs:
    """The usable pairs of a file or folder, of one `category` if that is given. Raises `ConfigError` if there is none.

    `faults` says, for each clip that is too short or unreadable, what is wrong with it; `bad_rows` are the rows of the
    file that are skipped; `strays` names the captions of a folder that describe no video of it.
    """

    def __init__(self, place: Path, model: ModelConfig, seed: int, category: str = "") -> None:
        self.place, self._seed = place, seed
        every, self.bad_rows = _pairs(place, seed)
        self.strays = CaptionFiles(files_of(place, VIDEO_SUFFIXES)).strays() if place.is_dir() else []
        found, self.faults = _usable(_of_category(place, every, category), model)
        if not found:
            why = f": {next(iter(self.faults.values()))}" if self.faults else ", because all opinions are equal"
            raise ConfigError(f"{place}: no pair to train on{why}")
        self.pairs = tuple(found)

    def __call__(self, ordinal: int) -> OfflinePair:
        """The pair with this ordinal, >= 0."""
        epoch, place = divmod(ordinal, len(self.pairs))
        return self.pairs[epoch_order(self._seed, epoch, len(self.pairs))[place]]

    def summary(self) -> str:
        """How much there is to train on: "23 pairs of 8 clips in 2 categories"."""
        clips = {one.clip for pair in self.pairs for one in pair.clips}
        if all(pair.rejected is None for pair in self.pairs):
            return f"{self.place}: {len(clips)} clips"
        names = {pair.category for pair in self.pairs if pair.category}
        among = f" in {_counted(len(names), 'category', 'categories')}" if names else ""
        pairs, clips_text = _counted(len(self.pairs), "pair", "pairs"), _counted(len(clips), "clip", "clips")
        return f"{self.place}: {pairs} of {clips_text}{among}"

    @property
    def digest(self) -> str:
        """Hex digest of all clips and scores. It serves as the reward version: scores of other files differ in it."""
        return digest("|".join(f"{one.clip.name}:{one.score}" for pair in self.pairs for one in pair.clips).encode())


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _pairs(place: Path, seed: int) -> tuple[list[OfflinePair], tuple[BadRow, ...]]:
    """Returns the pairs of a file or folder, and the rows of the file that are skipped."""
    if place.is_dir():
        return list(_from_folder(place)), ()
    if _has_pairs(place):
        pairs = read_pairs(place)
        return list(_from_pairs(pairs)), pairs.bad
    ratings = read_ratings(place)
    return list(_from_ratings(ratings, seed)), ratings.bad


def _of_category(place: Path, pairs: list[OfflinePair], category: str) -> list[OfflinePair]:
    chosen = [pair for pair in pairs if not category or pair.category == category]
    if pairs and not chosen:
        known = sorted({pair.category for pair in pairs if pair.category})
        raise ConfigError(f"pairs_category = {category!r}: {place} has pairs of {', '.join(known) or 'no category'}")
    return chosen


def _has_pairs(file: Path) -> bool:
    """Whether the file holds pairs rather than ratings, by its first row that is an object."""
    for line in read_text(file, "pairs").split("\n"):
        with suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                return not row.keys().isdisjoint({"chosen", *RatedPair.renamed})
    return False


def _from_pairs(table: Pairs) -> Iterator[OfflinePair]:
    for row in table.rows:
        image = None if row.first_frame is None else table.place(row.first_frame)
        rated = row.chosen_rating is not None and row.rejected_rating is not None
        best = to_score(row.chosen_rating) if rated and row.chosen_rating else CHOSEN_SCORE
        worst = to_score(row.rejected_rating) if rated and row.rejected_rating else REJECTED_SCORE
        chosen = PairClip(table.place(row.chosen), row.prompt, image, best)
        if row.rejected_prompt is not None:
            image = None if row.rejected_first_frame is None else table.place(row.rejected_first_frame)
        rejected = PairClip(table.place(row.rejected), row.rejected_prompt or row.prompt, image, worst)
        yield OfflinePair(chosen, rejected, row.category)


def _from_ratings(table: Ratings, seed: int) -> Iterator[OfflinePair]:
    """Pairs within a category, and for rows without one within a prompt. Each clip keeps its own caption and image."""
    groups: dict[tuple[str, str], list[PairClip]] = defaultdict(list)
    for row in table.rows:
        opinion = overall(row.ratings)
        if opinion is not None:
            image = None if row.first_frame is None else table.place(row.first_frame)
            clip = PairClip(table.place(row.clip), row.prompt, image, to_score(opinion))
            groups[("category", row.category) if row.category else ("prompt", row.prompt)].append(clip)
    for (kind, name), clips in groups.items():
        for one, other in _two_of(clips, seed):
            if one.score != other.score:
                better = max(one, other, key=lambda clip: clip.score)
                yield OfflinePair(better, other if better is one else one, name if kind == "category" else None)


def _two_of(clips: Sequence[PairClip], seed: int) -> Iterable[tuple[PairClip, PairClip]]:
    """Every two clips, or, of a large group, `PAIRS_PER_CLIP` random ones per clip: all would fill the memory."""
    if len(clips) <= 2 * PAIRS_PER_CLIP + 1:
        return combinations(clips, 2)
    random = np.random.default_rng((seed, len(clips)))
    chosen: set[tuple[int, int]] = set()
    while len(chosen) < PAIRS_PER_CLIP * len(clips):
        one, other = sorted(map(int, random.choice(len(clips), 2, replace=False)))
        chosen.add((one, other))
    return [(clips[one], clips[other]) for one, other in sorted(chosen)]


def _from_folder(folder: Path) -> Iterator[OfflinePair]:
    clips = files_of(folder, VIDEO_SUFFIXES)
    if not clips:
        raise ConfigError(f"{folder}: no videos in it; looked for {', '.join(VIDEO_SUFFIXES)}")
    texts = CaptionFiles(clips)
    captions = {clip: texts.caption(clip) for clip in clips}
    place = "in the same folder"
    if missing := [f"{clip}: no caption; write it to {clip.stem}.txt {place}" for clip in clips if not captions[clip]]:
        raise bad_input(f"{folder}: clips without a caption", missing)
    for clip, text in captions.items():
        yield OfflinePair(PairClip(clip, text, None, CHOSEN_SCORE), None, None)


def _usable(pairs: Sequence[OfflinePair], model: ModelConfig) -> tuple[list[OfflinePair], dict[Path, str]]:
    """Returns the pairs whose clips are readable and long enough, and what is wrong with each other clip."""
    clips = {one.clip for pair in pairs for one in pair.clips}
    faults = {clip: fault for clip in sorted(clips) if (fault := _fault(clip, model)) is not None}
    return [pair for pair in pairs if not any(one.clip in faults for one in pair.clips)], faults


def _fault(clip: Path, model: ModelConfig) -> str | None:
    try:
        timeline(read_file(clip)).places(model.frames, model.fps)
    except (OSError, ValueError) as error:
        return f"{clip}: {error}"
    return None
