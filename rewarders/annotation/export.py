"""Exports answers as training data: a ratings file and a pairs file (`common/data/ratings.py`), with their clips.

```
OUT/ratings.jsonl   one row per rated clip, with every annotator's ratings under every rubric used
OUT/pairs.jsonl     one row per pair with a majority; ties are left out
OUT/clips/          clips from a run's blobs; other clips stay where they are
OUT/frames/         their first frames
```
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.ratings import RatedClip, RatedPair, overall, write_pairs, write_ratings
from common.errors import ConfigError
from common.errors.disk import writing
from rewarders.annotation import inter_annotator
from rewarders.annotation.items import Pair, SurveyClip
from rewarders.annotation.survey import Survey

RATINGS, PAIRS = "ratings.jsonl", "pairs.jsonl"
Ratings = Mapping[str, Mapping[str, int]]  # annotator -> dimension -> 1..5


def export(survey: Survey, out: Path) -> str:
    """Writes the files and returns a summary. Raises `ConfigError` if there are no answers, or if OUT already has
    such files."""
    ratings, decided = all_ratings(survey), inter_annotator.decisions(survey, survey.given("compare"))
    if not ratings and not decided:
        raise ConfigError(f"{survey.store.path}: no answers yet")
    taken = [out / name for name in (RATINGS, PAIRS) if (out / name).exists()]
    if taken:
        raise ConfigError(f"{taken[0]}: exists already; choose another folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        writer = Writer(out, ratings)
        rows = [writer.rated(clip) for clip in survey.clips if clip.key in ratings]
        found = [writer.preferred(pair, choices) for pair, choices in decided]
    pairs = [pair for pair in found if pair is not None]
    if rows:
        write_ratings(out / RATINGS, rows)
    if pairs:
        write_pairs(out / PAIRS, pairs)
    few = sum(len(row.ratings) < survey.annotators for row in rows)
    said = f"{out}: {len(rows)} rated clips, {len(pairs)} pairs; {len(found) - len(pairs)} ties left out"
    return said + (f"; {few} clips have fewer than {survey.annotators} annotators" if few else "")


def all_ratings(survey: Survey) -> dict[str, Ratings]:
    """Returns clip key -> annotator -> ratings, over all rubrics used."""
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    known = {clip.key for clip in survey.clips}
    for kind in survey.store.kinds():
        for answer in survey.store.answers(kind) if kind.startswith("rate:") else ():
            if answer.item in known:
                found[answer.item][answer.annotator] |= answer.value
    return {item: dict(by_annotator) for item, by_annotator in found.items()}


@dataclass(frozen=True)
class Writer:
    """Builds the rows of an export folder and writes the files that they name."""

    out: Path
    ratings: Mapping[str, Ratings]

    def rated(self, clip: SurveyClip) -> RatedClip:
        """Returns the row of one rated clip."""
        return RatedClip(
            clip=self._clip(clip),
            first_frame=self._first_frame(clip),
            prompt=_prompt(clip),
            character=clip.character,
            category=clip.category,
            source=clip.source,
            seed=clip.seed,
            ratings={who: dict(given) for who, given in self.ratings[clip.key].items()},
        )

    def preferred(self, pair: Pair, choices: Sequence[inter_annotator.Choice]) -> RatedPair | None:
        """Returns the row of a pair with a majority, or None for a tie."""
        choice = inter_annotator.majority(choices)
        if choice == "tie":
            return None
        chosen, rejected = (pair.first, pair.second) if choice == "first" else (pair.second, pair.first)
        best, worst = (overall(self.ratings.get(clip.key, {})) for clip in (chosen, rejected))
        # If the ratings contradict the direct comparison, the comparison counts.
        agree = best is not None and worst is not None and best > worst
        own = chosen.condition != rejected.condition
        return RatedPair(
            prompt=_prompt(chosen),
            first_frame=self._first_frame(chosen),
            chosen=self._clip(chosen),
            rejected=self._clip(rejected),
            rejected_prompt=_prompt(rejected) if own else None,
            rejected_first_frame=self._first_frame(rejected) if own else None,
            chosen_rating=best if agree else None,
            rejected_rating=worst if agree else None,
            category=chosen.category,
            annotators=len(choices),
        )

    def _clip(self, clip: SurveyClip) -> str:
        if clip.file is not None:
            return self._relative(clip.file)
        return self._keep(Path("clips") / f"{clip.key}.mp4", clip.read)

    def _first_frame(self, clip: SurveyClip) -> str | None:
        if clip.first_frame_file is not None:
            return self._relative(clip.first_frame_file)
        return None if clip.first_frame is None else self._keep(Path("frames") / f"{clip.key}.png", clip.first_frame)

    def _keep(self, name: Path, read: Callable[[], bytes]) -> str:
        path = self.out / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(read())
        return str(name)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path.resolve(), self.out.resolve())


def _prompt(clip: SurveyClip) -> str:
    """Returns the caption, or the file's name if it has none."""
    return clip.prompt or Path(clip.name).stem
