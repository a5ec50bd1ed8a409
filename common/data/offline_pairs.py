"""Human preference pairs recorded before the run (HuViDPO), and real clips for fine-tuning. Imports no torch.

```
pairs.jsonl      one pair per row               ──> that pair; scores 100 and 0, or the row's own ratings
ratings.jsonl    8 to 16 rated clips a category ──> all pairs within a category whose mean opinions differ
a folder         real clips with captions       ──> each clip paired with itself; for `learner.loss = "sft"` only
```

`RecordedPairs` is called with an ordinal and returns that pair. Pairs come in random order, reshuffled every epoch. The
file must not change during the run.

HuViDPO ("HuViDPO: Enhancing Video Generation through Direct Preference Optimization for Human-Centric Alignment",
2025) rates 8 to 16 clips of one kind of motion and trains low-rank adapters on random pairs of them. Winner and loser
have different first frames, so the loss evaluates each under its own condition:

    inside = -beta/2 [ (e_theta(w | c_w) - e_ref(w | c_w)) - (e_theta(l | c_l) - e_ref(l | c_l)) ]

This is the loss in the paper's public code (`new_trian.py` of the repository Tankowa/HuViDPO; the error is in eps
there, in v here). Its equation number in the paper (arXiv 2502.01690) is not verified.

| symbol | here | meaning |
|---|---|---|
| w, l | `RecordedPair.winner`, `.loser` | clips; w has the higher mean opinion |
| c_w, c_l | `PairClip.text`, `.first_frame` | caption and clean first frame of w, of l |
| R~w, R~l | `PairClip.score` / 100 | mean opinion 1..5 mapped to 0..1; without ratings 1 and 0 |

Deviations from the published code:
- It puts the clean first frame into x_t and excludes it from the error, because its model has no image input. CogVideoX
  gets the first frame on extra channels, and the error covers all frames, as in CogVideoX's training.
- It uses one caption for all clips of a category, and dropout in the adapter (none here).
- It picks an arbitrary winner if opinions are equal; such pairs are skipped here.
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

WINNER_SCORE, LOSER_SCORE = 100.0, 0.0  # for pairs without ratings


@dataclass(frozen=True)
class PairClip:
    """One clip of a pair, with the prompt it was made for."""

    clip: Path
    text: str
    first_frame: Path | None  # None: the clip's own first frame
    score: float  # 0..100


@dataclass(frozen=True)
class RecordedPair:
    """Two clips, of which people preferred `winner`."""

    winner: PairClip
    loser: PairClip
    category: str | None

    @property
    def clips(self) -> tuple[PairClip, PairClip]:
        """The clips in the order of their candidate index: the pair becomes a group with two candidates."""
        return self.winner, self.loser


class RecordedPairs:
    """The usable pairs of a file or folder. Raises `ConfigError` if there is none.

    `faults` says, for each clip that is too short or unreadable, what is wrong with it.
    """

    def __init__(self, place: Path, model: ModelConfig, seed: int) -> None:
        self.place, self._seed = place, seed
        found, self.faults = _usable(_pairs(place), model)
        if not found:
            why = f": {next(iter(self.faults.values()))}" if self.faults else ", because all opinions are equal"
            raise ConfigError(f"{place}: no pair to train on{why}")
        self.pairs = tuple(found)

    def __call__(self, ordinal: int) -> RecordedPair:
        """The pair with this ordinal, >= 0."""
        epoch, place = divmod(ordinal, len(self.pairs))
        return self.pairs[_order(self._seed, epoch, len(self.pairs))[place]]

    @property
    def digest(self) -> str:
        """Hex digest of all clips and scores. It serves as the reward version: scores of other files differ in it."""
        return digest("|".join(f"{one.clip.name}:{one.score}" for pair in self.pairs for one in pair.clips).encode())


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
    """Whether the file holds pairs rather than ratings, by its first row."""
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
        best = to_score(row.winner_rating) if rated and row.winner_rating else WINNER_SCORE
        worst = to_score(row.loser_rating) if rated and row.loser_rating else LOSER_SCORE
        winner = PairClip(table.place(row.winner), row.prompt, image, best)
        loser = PairClip(table.place(row.loser), row.prompt, image, worst)
        yield RecordedPair(winner, loser, row.category)


def _from_ratings(table: Ratings) -> Iterator[RecordedPair]:
    by_category: dict[str | None, list[PairClip]] = defaultdict(list)
    for row in table.rows:
        opinion = overall(row.ratings)
        if opinion is not None:
            image = None if row.first_frame is None else table.place(row.first_frame)
            clip = PairClip(table.place(row.clip), row.prompt, image, to_score(opinion))
            by_category[row.category].append(clip)
    for category, clips in by_category.items():
        for one, other in combinations(clips, 2):
            if one.score != other.score:
                better = max(one, other, key=lambda clip: clip.score)
                yield RecordedPair(better, other if better is one else one, category)


def _from_folder(folder: Path) -> Iterator[RecordedPair]:
    clips = sorted(folder.glob("*.mp4"))
    if not clips:
        raise ConfigError(f"{folder}: no mp4 files in it")
    for clip in clips:
        caption = clip.with_suffix(".txt")
        text = caption.read_text("utf-8").strip() if caption.is_file() else ""
        if not text:
            raise ConfigError(f"{clip}: no caption; write it to {caption.name} in the same folder")
        winner, loser = (PairClip(clip, text, None, score) for score in (WINNER_SCORE, LOSER_SCORE))
        yield RecordedPair(winner, loser, None)


def _usable(pairs: Sequence[RecordedPair], model: ModelConfig) -> tuple[list[RecordedPair], dict[Path, str]]:
    """Returns the pairs whose clips are readable and long enough, and what is wrong with each other clip."""
    clips = {one.clip for pair in pairs for one in pair.clips}
    faults = {clip: fault for clip in sorted(clips) if (fault := _fault(clip, model)) is not None}
    return [pair for pair in pairs if not any(one.clip in faults for one in pair.clips)], faults


def _fault(clip: Path, model: ModelConfig) -> str | None:
    try:
        frame_places(*clip_length(clip.read_bytes()), model.frames, model.fps)
    except (OSError, ValueError) as error:
        return f"{clip}: {error}"
    return None


def frame_places(count: int, clip_fps: float, frames: int, fps: int) -> list[int]:
    """The indices of a clip's `count` frames that resample its start to `frames` frames at `fps`.

    Raises:
        ValueError: the clip is too short.
    """
    places = [round(place * clip_fps / fps) for place in range(frames)]
    if places[-1] >= count:
        raise ValueError(
            f"{count} frames at {clip_fps:g} frames per second are too few: the model takes {frames} at {fps} "
            f"(model.frames, model.fps)"
        )
    return places
