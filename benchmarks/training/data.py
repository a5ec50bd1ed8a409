"""Data that exists before a run: candidate sets, real clips, rated clips. All are for the run's training prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from benchmarks.training.runs import Cost, Prepared, Study, Variant, as_flags, cost_of, douga
from common.candidate_set.folder import CandidateSet, read_set
from common.candidate_set.rows import CandidateRow
from common.data.ratings import RatedClip, to_rating, write_ratings
from common.data.video import decode_clip, encode_mp4
from common.files import new_folder
from common.messages import Prompt
from common.toon.oracle import judge
from common.toon.prompts import ToonPrompts, shot_of
from common.toon.world import ACTIONS, FPS, render
from deploy.run_dir import layout

RATER = "oracle"
RATINGS = "ratings.jsonl"


@dataclass(frozen=True)
class Candidates:
    """One candidate set of the embedded model, collected once, for all variants of a seed."""

    name: str = "set"

    def prepare(self, study: Study, seed: int) -> Prepared:
        """Collects as many groups as a run trains on."""
        folder, cost = collect(study, seed, self.name)
        return Prepared({"candidates": str(folder)}, cost)


@dataclass(frozen=True)
class RealClips:
    """Rendered clips, which are the toon world's real ones: the first `per_action` training prompts of each action."""

    per_action: int = 16  # HuViDPO: 8 to 16 clips of a kind of motion
    name: str = "real"

    def prepare(self, study: Study, seed: int) -> Prepared:
        """Renders the clips. None of them counts as sampled."""
        place = study.folder(seed) / self.name
        if not place.is_dir():
            with new_folder(place) as folder:
                for number, prompt in enumerate(few_of_each_action(seed, self.per_action)):
                    (folder / f"{number:04d}.mp4").write_bytes(encode_mp4(render(shot_of(prompt)), FPS))
                    (folder / f"{number:04d}.txt").write_text(f"{prompt.text}\n", "utf-8")
        return Prepared({"pairs": str(place), "sampler.candidates": "1"})


@dataclass(frozen=True)
class RatedClips:
    """Clips of a variant's model, rated by the oracle in place of people. The run starts from that model."""

    tuned: Variant
    name: str = "rated"

    def prepare(self, study: Study, seed: int) -> Prepared:
        """Trains and exports the variant, collects as many clips as an online run samples, and rates them."""
        tuned = study.train(self.tuned, seed)
        model = study.folder(seed) / f"{self.tuned.label}-model"
        if not model.is_dir():
            douga("export", str(tuned.folder), "--out", str(model))
        folder, cost = collect(study, seed, self.name, {"model.path": str(model)})
        ratings = rate(read_set(folder))
        flags = {"pairs": str(ratings), "sampler.candidates": "2", "model.path": str(model)}
        return Prepared(flags, tuned.cost + cost)


def collect(study: Study, seed: int, name: str, flags: dict[str, str] | None = None) -> tuple[Path, Cost]:
    """Collects a candidate set of the groups that a run trains on. Returns the collection's folder and its cost."""
    keys = study.keys(seed) | (flags or {}) | {"name": name}
    douga("collect", str(layout.TOON), "--count", str(study.groups(seed)), *as_flags(keys))
    folder = study.folder(seed) / name
    return folder, cost_of(folder)


def few_of_each_action(seed: int, per_action: int) -> Iterator[Prompt]:
    """The first `per_action` training prompts of each action, in their order."""
    prompts, found = ToonPrompts(seed), Counter[str]()
    for ordinal in count():
        prompt = prompts(ordinal)
        action = shot_of(prompt).action
        if found[action] < per_action:
            found[action] += 1
            yield prompt
        if found.total() == per_action * len(ACTIONS):
            return


def rate(candidates: CandidateSet) -> Path:
    """Writes ratings.jsonl to a set: the oracle's answers, 0..100, as ratings 1..5. Returns the file."""
    file = candidates.folder / RATINGS
    if not file.is_file():
        write_ratings(file, [_rated(candidates, row) for row in candidates.rows.values()])
    return file


def _rated(candidates: CandidateSet, row: CandidateRow) -> RatedClip:
    shot = shot_of(candidates.prompt(row))
    answers = asdict(judge(decode_clip(candidates.clip(row)), shot))
    return RatedClip(
        clip=row.clip,
        first_frame=row.first_frame,
        prompt=row.prompt,
        character=row.character,
        category=shot.action,
        source="policy",
        ratings={RATER: {name: to_rating(value) for name, value in answers.items()}},
    )
