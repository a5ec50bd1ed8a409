"""Pairs that people made before the run: HuViDPO's way, and fine-tuning on a few real clips. Imports no torch.

```
pairs.jsonl      a pair a row                       reward 100 and 0, or the ratings that the row has
ratings.jsonl    8 to 16 rated clips a category ──> every two of a category whose mean opinions differ
a folder         clips with captions, real ones ──> each clip against itself, for `learner.loss = "sft"` alone
```

`RecordedPairs(ordinal)` gives the pair of every ordinal: all of them in random order, shuffled anew in every epoch. The
file must stay as it is while the run goes on.

HuViDPO ("HuViDPO: Enhancing Video Generation through Direct Preference Optimization for Human-Centric Alignment",
2025) rates 8 to 16 clips of one kind of motion and trains low-rank adapters on random pairs of them. Winner and loser
then have first frames of their own, so the loss compares each under its own condition:

    inside = -beta/2 [ (e_theta(w | c_w) - e_ref(w | c_w)) - (e_theta(l | c_l) - e_ref(l | c_l)) ]

That is the loss of the paper's public code (`new_trian.py` of the repository Tankowa/HuViDPO; error in eps there, in v
here); its equation number in the paper (arXiv 2502.01690): not sourced.

| symbol | here | meaning |
|---|---|---|
| w, l | `RecordedPair.winner`, `.loser` | clips; the one with the higher mean opinion is w |
| c_w, c_l | `End.text`, `End.image` | caption and clean first frame of w, of l |
| R~w, R~l | `End.score` / 100 | mean opinion 1..5 as 0..1; of a bare pair 1 and 0 |

Deviations: the published code puts the clean first frame into x_t and takes it out of the error, as its model has no
other way to see it; CogVideoX takes it on channels of its own, and the error is over all frames, as in its training.
It gives all clips of a category one caption, and has dropout in the adapter (here none). Pairs whose opinions are equal
are left out; the published code takes either for the winner.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from common.config import ModelConfig
from common.data.ratings import Pairs, Ratings, overall, read_pairs, read_ratings, to_score
from common.data.video import clip_length
from common.digests import digest
from common.errors import ConfigError

WON, LOST = 100.0, 0.0  # scores of a pair that has no ratings


@dataclass(frozen=True)
class End:
    """One clip of a pair and what it was made for."""

    clip: Path
    text: str
    first_frame: Path | None  # None: the clip's own first frame
    score: float  # 0..100


@dataclass(frozen=True)
class RecordedPair:
    """What people preferred to what."""

    winner: End
    loser: End
    category: str | None

    @property
    def ends(self) -> tuple[End, End]:
        """Candidate 0 and candidate 1 of the group that the pair becomes."""
        return self.winner, self.loser


class RecordedPairs:
    """The pairs of a file or a folder that fit the model. `ConfigError` when none does."""

    def __init__(self, place: Path, model: ModelConfig, seed: int) -> None:
        self.place, self._seed = place, seed
        found, self.faults = _fitting(_pairs(place), model)
        if not found:
            why = f": {next(iter(self.faults.values()))}" if self.faults else ", and no two opinions differ"
            raise ConfigError(f"{place}: no pair to train on{why}")
        self.pairs = tuple(found)

    def __call__(self, ordinal: int) -> RecordedPair:
        """The pair of an ordinal >= 0."""
        epoch, place = divmod(ordinal, len(self.pairs))
        return self.pairs[_order(self._seed, epoch, len(self.pairs))[place]]

    @property
    def digest(self) -> str:
        """Of all opinions, hex: those of another file do not compare."""
        return digest("|".join(f"{end.clip.name}:{end.score}" for pair in self.pairs for end in pair.ends).encode())


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng((seed, epoch)).permutation(count))


def _pairs(place: Path) -> list[RecordedPair]:
    if place.is_dir():
        return list(_from_folder(place))
    if _has_winners(place):
        return list(_from_pairs(read_pairs(place)))
    return list(_from_ratings(read_ratings(place)))


def _has_winners(file: Path) -> bool:
    """Whether the first row is that of a pair."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"pairs = {str(file)!r}: cannot be read: {error}") from None
    return isinstance(first, dict) and "winner" in first


def _from_pairs(table: Pairs) -> Iterator[RecordedPair]:
    for row in table.rows:
        image = None if row.first_frame is None else table.place(row.first_frame)
        rated = row.winner_rating is not None and row.loser_rating is not None
        best = to_score(row.winner_rating) if rated and row.winner_rating else WON
        worst = to_score(row.loser_rating) if rated and row.loser_rating else LOST
        winner = End(table.place(row.winner), row.prompt, image, best)
        loser = End(table.place(row.loser), row.prompt, image, worst)
        yield RecordedPair(winner, loser, row.category)


def _from_ratings(table: Ratings) -> Iterator[RecordedPair]:
    by_category: dict[str | None, list[End]] = defaultdict(list)
    for row in table.rows:
        opinion = overall(row.ratings)
        if opinion is not None:
            image = None if row.first_frame is None else table.place(row.first_frame)
            by_category[row.category].append(End(table.place(row.clip), row.prompt, image, to_score(opinion)))
    for category, ends in by_category.items():
        for one, other in combinations(ends, 2):
            if one.score != other.score:
                better = max(one, other, key=lambda end: end.score)
                yield RecordedPair(better, other if better is one else one, category)


def _from_folder(folder: Path) -> Iterator[RecordedPair]:
    clips = sorted(folder.glob("*.mp4"))
    if not clips:
        raise ConfigError(f"{folder}: no mp4 files in it")
    for clip in clips:
        caption = clip.with_suffix(".txt")
        text = caption.read_text("utf-8").strip() if caption.is_file() else ""
        if not text:
            raise ConfigError(f"{clip}: no caption; write it into {caption.name} beside it")
        yield RecordedPair(End(clip, text, None, WON), End(clip, text, None, LOST), None)


def _fitting(pairs: Sequence[RecordedPair], model: ModelConfig) -> tuple[list[RecordedPair], dict[Path, str]]:
    """The pairs of clips that are long enough, and what is wrong with the other clips."""
    clips = {end.clip for pair in pairs for end in pair.ends}
    found = {clip: fault for clip in sorted(clips) if (fault := _fault(clip, model)) is not None}
    return [pair for pair in pairs if not any(end.clip in found for end in pair.ends)], found


def _fault(clip: Path, model: ModelConfig) -> str | None:
    try:
        frame_places(*clip_length(clip.read_bytes()), model.frames, model.fps)
    except (OSError, ValueError) as error:
        return f"{clip}: {error}"
    return None


def frame_places(count: int, clip_fps: float, frames: int, fps: int) -> list[int]:
    """Which of a clip's `count` frames are the first `frames` at `fps`. `ValueError` when the clip is too short."""
    places = [round(place * clip_fps / fps) for place in range(frames)]
    if places[-1] >= count:
        raise ValueError(
            f"{count} frames at {clip_fps:g} frames per second are too few: the model takes {frames} at {fps} "
            f"(model.frames, model.fps)"
        )
    return places
