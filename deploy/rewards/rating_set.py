"""Builds rating sets: clips that generators make from each video's third frame and caption, and the videos themselves.

```
prompt file, or a folder's third frames and captions ──> every generator ─┐
folder of videos ── from the third frame on, at the generators' size ─────┼─> OUT/clips/, OUT/ratings.jsonl
manifest of other generators' clips ── without sound and tags ────────────┘
rendered clips with known defects ── rated by the renderer, as one annotator ──> the same
```

The source videos are rated too (source `common.data.ratings.REAL`): their ratings show what real clips get. File names
do not reveal the source of a clip. Existing files are not made again, so the same command resumes after an
interruption, and another manifest adds its clips to those that are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.prompts.from_videos import THIRD, Captioner, from_videos
from actors.prompts.source import file_prompts
from actors.prompts.vocabulary import Vocabulary
from actors.sampler import Sampler
from common.config import ModelConfig, RunConfig
from common.data.player import frames_at, timeline
from common.data.ratings import REAL, RatedClip, to_rating, write_ratings
from common.data.video import VIDEO_SUFFIXES, anonymous_mp4, encode_mp4
from common.digests import digest
from common.errors import ConfigError, one_per_line
from common.files import replacing, write_whole
from common.images import decode_image, encode_png, fit
from common.messages import Prompt
from common.models.cogvideox import open_model
from common.seeds import candidate_seed
from common.toon.prompts import shot_id
from common.toon.world import DIMENSIONS, FPS, render
from common.weights.store import WeightStore
from deploy.rewards.foreign import ForeignClip, Manifest
from rewarders.first_frame import reference_frame
from rewarders.toon_heads.training.dataset import TEST_CHARACTERS, Samples, draw_samples
from rewarders.training.dataset import prompt_text

RATINGS, SETTINGS = "ratings.jsonl", "build.json"
ADDED = "added"  # in `SETTINGS`: a digest of what another build may change: the manifest's clips, the vocabulary
RENDERER = "renderer"  # source and annotator of rendered clips
MIXED = "mixed"  # `character` of all figures composed from several characters' parts, because they share parts
TEST_SHARE = 0.3  # approximate share of the prompts that show `TEST_CHARACTERS`
LEAST = 5  # minimum number of prompts
Log = Callable[[str], None]


@dataclass(frozen=True)
class Generator:
    """A model that makes clips. `name` is its `source` in the ratings file."""

    name: str
    config: RunConfig
    weights: WeightStore | None = None
    version: int = 0

    def sampler(self) -> Sampler:
        """Returns a sampler with the weights of `version`."""
        sampler = Sampler(open_model(self.config.model.path), self.config)
        if self.weights is not None and self.version:
            sampler.load(*self.weights.load(self.version))
        return sampler


@dataclass(frozen=True)
class Inputs:
    """What a rating set is made of. Without `prompts`, a prompt file, captions and third frames of the videos are."""

    videos: Path
    prompts: Path | None = None
    captions: Path | None = None
    captioner: Captioner | None = None
    foreign: Path | None = None  # a manifest
    vocabulary: Vocabulary | None = None  # of the categories; None: any


def build_from_videos(
    inputs: Inputs, out: Path, generators: Sequence[Generator], clips: int, seed: int, log: Log
) -> Path:
    """Makes `clips` clips per generator and one source clip for every prompt. Returns the path of the ratings file.

    A prompt's `id` is the name of its video. A prompt without a video, or with one that is too short for a clip of the
    first generator's length, gets no source clip; this is logged. Raises `ConfigError` if `from_videos` or the manifest
    does, if generators share a name, if a category is not in the vocabulary, or if `out` holds a set with other
    settings.
    """
    names = [generator.name for generator in generators]
    if not names or len(set(names)) < len(names) or REAL in names:
        raise ConfigError(
            f"generators {', '.join(names) or 'none'}: at least one is needed, with unique names other than {REAL!r}"
        )
    foreign = []
    if inputs.foreign is not None:
        foreign = Manifest(inputs.foreign, (REAL, *names), inputs.vocabulary).clips(log)
    added = digest(repr((foreign, inputs.vocabulary)).encode())
    if _is_done(out, _settings(inputs, generators, clips, seed), added):
        return out / RATINGS
    prompts = _prompts(inputs, out, log)
    rows = _source_clips(inputs.videos, out, prompts, generators[0].config.model, seed, log)
    for generator in generators:
        rows += _generated(out, prompts, generator, clips, seed, log)
    rows += _foreign(out, foreign, seed)
    rows.sort(key=lambda row: (row.first_frame or "", row.clip))
    write_ratings(out / RATINGS, rows)
    for line in _coverage(prompts, rows):
        log(line)
    return out / RATINGS


def _settings(inputs: Inputs, generators: Sequence[Generator], clips: int, seed: int) -> dict[str, Any]:
    """What must not change between two builds of a folder."""
    made = [
        {"name": one.name, **one.config.model_dump(mode="json", include={"model", "sampler"})} for one in generators
    ]
    listed = inputs.videos.iterdir() if inputs.videos.is_dir() else ()
    videos = sorted(path.name for path in listed if path.suffix.lower() in VIDEO_SUFFIXES)
    settings = {"videos": videos, "generators": made, "clips": clips, "seed": seed}
    return settings if inputs.prompts is None else settings | {"prompts": digest(inputs.prompts.read_bytes())}


def build_toon(out: Path, prompts: int, candidates: int, seed: int, log: Log) -> Path:
    """Renders clips with known defects, rated by the renderer's ground truth. Returns the path of the ratings file.

    Every prompt gets `candidates` clips with defects, and one without as the real clip. About 70 % of the prompts show
    figures composed from the parts of the training characters; the others show the two test characters, which share no
    part with them. Raises `ConfigError` for too few prompts or candidates, or if `out` holds a set with other settings.
    """
    if prompts < LEAST or candidates < 1:
        raise ConfigError(
            f"{prompts} prompts with {candidates} clips each: at least {LEAST} prompts with 1 clip are needed"
        )
    if _is_done(out, {"toon": prompts, "candidates": candidates, "seed": seed}):
        return out / RATINGS
    rows: list[RatedClip] = []
    test = max(1, round(TEST_SHARE * prompts / len(TEST_CHARACTERS)))  # prompts per test character
    parts = [("train", prompts - test * len(TEST_CHARACTERS)), *((name, test) for name in TEST_CHARACTERS)]
    for part, count in parts:
        samples = draw_samples(count * candidates, seed, part, log=log, candidates=candidates)
        rows += _rendered(out, samples, candidates, part, seed)
        log(f"{len(rows)} clips of {prompts * (candidates + 1)} written")
    write_ratings(out / RATINGS, rows)
    return out / RATINGS


def _is_done(out: Path, settings: dict[str, Any], added: str = "") -> bool:
    """Creates the folder and records its settings. Returns whether it is finished already.

    Raises `ConfigError` if it was built with other `settings`. With another `added` it is unfinished.
    """
    record = out / SETTINGS
    before = json.loads(record.read_text("utf-8")) if record.is_file() else {**settings, ADDED: added}
    same = before.pop(ADDED, "") == added
    if before != settings:
        raise ConfigError(
            f"{out}: holds clips that were made from other inputs or with other options; choose another --out"
        )
    for name in ("clips", "frames"):
        (out / name).mkdir(parents=True, exist_ok=True)
    if not same:
        (out / RATINGS).unlink(missing_ok=True)
    write_whole(record, json.dumps({**settings, ADDED: added}, indent=1) + "\n")
    return (out / RATINGS).is_file()


def _prompts(inputs: Inputs, out: Path, log: Log) -> list[Prompt]:
    """The prompts in the order of their file. Raises `ConfigError`."""
    table = inputs.prompts or out / "prompts" / "prompts.jsonl"
    if not table.is_file() and inputs.prompts is None:
        from_videos(inputs.videos, table.parent, inputs.captions, inputs.captioner, log)
    prompts = list(file_prompts(table))
    if inputs.vocabulary is None:
        return prompts
    known, bad = [], []
    for prompt in prompts:
        try:
            known.append(replace(prompt, category=inputs.vocabulary.action(prompt.category)))
        except ValueError as error:
            bad.append(f"{prompt.id}: {error}")
    if bad:
        raise ConfigError(one_per_line(f"{table}: {len(bad)} prompts without a known action", bad))
    return known


def _coverage(prompts: Sequence[Prompt], rows: Sequence[RatedClip]) -> list[str]:
    """How many clips each source has, and of how many of the prompts."""
    known = {prompt_text(prompt.text) for prompt in prompts}
    lines = []
    for source in sorted({row.source for row in rows}):
        captions = [prompt_text(row.prompt) for row in rows if row.source == source]
        others = sum(caption not in known for caption in captions)
        line = f"{source}: {len(captions)} clips, of {len(known & set(captions))} of {len(known)} captions"
        lines.append(line + (f"; {others} of other captions" if others else ""))
    return lines


def _row(out: Path, prompt: Prompt, source: str, clip: str, seed: int | None = None) -> RatedClip:
    frame = None
    if prompt.image is not None:
        frame = f"frames/{digest(prompt.image)[:12]}.png"
        if not (out / frame).exists():
            _keep(out / frame, encode_png(np.asarray(decode_image(prompt.image))))
    parts = {"prompt": prompt.text, "character": prompt.character, "category": prompt.category}
    return RatedClip(clip=clip, first_frame=frame, source=source, seed=seed, **parts)


def _name(seed: int, *what: object) -> str:
    return f"clips/{digest('|'.join(map(str, (seed, *what))).encode())[:12]}.mp4"


def _keep(path: Path, data: bytes) -> None:
    """Writes atomically, because an existing file is taken as complete."""
    with replacing(path) as draft:
        draft.write_bytes(data)


def _source_clips(
    videos: Path, out: Path, prompts: Sequence[Prompt], size: ModelConfig, seed: int, log: Log
) -> list[RatedClip]:
    rows, missing = [], 0
    for prompt in prompts:
        clip = _name(seed, prompt.id, REAL, 0)
        try:
            if not (out / clip).exists():
                _keep(out / clip, encode_mp4(source_clip((videos / prompt.id).read_bytes(), size), size.fps))
            rows.append(_row(out, prompt, REAL, clip))
        except (OSError, ValueError) as error:
            missing += 1
            why = error.strerror if isinstance(error, OSError) else error
            log(f"{videos / prompt.id}: no source clip: {why}")
    log(f"{len(rows)} source clips" + (f"; {missing} prompts have none" if missing else ""))
    return rows


def source_clip(data: bytes, size: ModelConfig) -> np.ndarray:
    """Returns a video from its third frame on in a model's format: uint8 ``[frames, height, width, 3]`` at `size.fps`.

    Takes the frames on screen at each time, scales them to cover the size and center-crops them. Raises `ValueError` if
    the video is too short.
    """
    chosen = timeline(data).places(size.frames, size.fps, first=THIRD)
    return np.stack([fit(Image.fromarray(one), size.height, size.width) for one in frames_at(data, chosen)])


def _generated(
    out: Path, prompts: Sequence[Prompt], generator: Generator, clips: int, seed: int, log: Log
) -> list[RatedClip]:
    sampler: Sampler | None = None
    rows: list[RatedClip] = []
    for prompt in prompts:
        names = [_name(seed, prompt.id, generator.name, k) for k in range(clips)]
        seeds = [candidate_seed(seed, f"ratings {generator.name}", prompt.ordinal, k) for k in range(clips)]
        if missing := [k for k, name in enumerate(names) if not (out / name).exists()]:
            sampler = sampler or generator.sampler()
            for made in sampler.sample(prompt, sampler.encode(prompt), seeds, missing):
                _keep(out / names[made.index], made.clip)
            log(f"{generator.name}: {prompt.ordinal + 1}/{len(prompts)} prompts")
        rows += [_row(out, prompt, generator.name, *clip) for clip in zip(names, seeds, strict=True)]
    return rows


def _foreign(out: Path, clips: Sequence[ForeignClip], seed: int) -> list[RatedClip]:
    rows = []
    for place, one in enumerate(clips):
        name = _name(seed, one.generator, one.digest)
        if not (out / name).exists():
            _keep(out / name, anonymous_mp4(one.video.read_bytes()))
        image = None if one.first_frame is None else one.first_frame.read_bytes()
        prompt = Prompt(place, name, one.prompt, image, character=one.character, category=one.category)
        if image is None:  # written down, so that the page shows a first frame for every clip
            first = reference_frame(frames_at((out / name).read_bytes(), [0]), prompt)
            prompt = replace(prompt, image=encode_png(first))
        rows.append(_row(out, prompt, one.generator, name, one.seed))
    return rows


def _rendered(out: Path, samples: Samples, candidates: int, part: str, seed: int) -> list[RatedClip]:
    rows = []
    for i, (shot, text, first) in enumerate(zip(samples.shots, samples.captions, samples.firsts, strict=True)):
        character = MIXED if part == "train" else shot.character
        place = i // candidates
        prompt = Prompt(place, shot_id(shot), text, encode_png(first), character=character, category=shot.action)
        truths = dict(zip(DIMENSIONS, samples.truths[i].tolist(), strict=True))
        made = [(RENDERER, samples.clips[i], truths)]
        if i % candidates == 0:
            made.append((REAL, render(shot), dict.fromkeys(DIMENSIONS, 100.0)))
        for source, clip, truth in made:
            name = _name(seed, part, i, source)
            _keep(out / name, encode_mp4(clip, FPS))
            rated = {dimension: round(to_rating(value), 4) for dimension, value in truth.items()}
            rows.append(_row(out, prompt, source, name).model_copy(update={"ratings": {RENDERER: rated}}))
    return rows
