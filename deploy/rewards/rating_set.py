"""Builds rating sets: clips that generators make from each video's third frame and caption, and the videos themselves.

```
folder of videos ── third frame, caption ──> OUT/prompts/ ──> every generator ─┐
        └────────── from the third frame on, at the generators' size ──────────┴─> OUT/clips/, OUT/ratings.jsonl
rendered clips with known defects ── rated by the renderer, as one annotator ────> the same
```

The source videos are rated too (source `common.data.ratings.REAL`): their ratings show what real clips get. File names
do not reveal the source of a clip. Existing files are not made again, so the same command resumes after an
interruption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.prompts.from_videos import THIRD, Captioner, from_videos
from actors.prompts.source import read_table
from actors.sampler import Sampler
from common.config import ModelConfig, RunConfig
from common.data.ratings import REAL, RatedClip, to_rating, write_ratings
from common.data.video import VIDEO_SUFFIXES, clip_length, decode_frames, encode_mp4
from common.digests import digest
from common.errors import ConfigError
from common.files import replacing, write_whole
from common.images import encode_png, fit
from common.messages import Prompt
from common.models.cogvideox import open_model
from common.seeds import candidate_seed
from common.toon.prompts import shot_id
from common.toon.world import DIMENSIONS, FPS, render
from common.weights.store import WeightStore
from rewarders.toon_heads.training.dataset import TEST_CHARACTERS, Samples, draw_samples

RATINGS, SETTINGS = "ratings.jsonl", "build.json"
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


def build_from_videos(
    videos: Path,
    out: Path,
    generators: Sequence[Generator],
    clips: int,
    seed: int,
    log: Log,
    captions: Path | None = None,
    captioner: Captioner | None = None,
) -> Path:
    """Makes `clips` clips per generator and one source clip for every video. Returns the path of the ratings file.

    A video that is too short for a clip of the first generator's length gets no source clip; this is logged. Raises
    `ConfigError` if `from_videos` does, if generators share a name, or if `out` holds a set with other settings.
    """
    names = [generator.name for generator in generators]
    if not names or len(set(names)) < len(names) or REAL in names:
        raise ConfigError(
            f"generators {', '.join(names) or 'none'}: at least one is needed, with unique names other than {REAL!r}"
        )
    made = [
        {"name": one.name, **one.config.model_dump(mode="json", include={"model", "sampler"})} for one in generators
    ]
    names_of_videos = (
        sorted(path.name for path in videos.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
        if videos.is_dir()
        else []
    )
    if _is_done(out, {"videos": names_of_videos, "generators": made, "clips": clips, "seed": seed}):
        return out / RATINGS
    table = out / "prompts" / "prompts.jsonl"
    if not table.is_file():
        from_videos(videos, table.parent, captions, captioner)
    prompts = _prompts(table)
    rows = _source_clips(videos, out, prompts, generators[0].config.model, seed, log)
    for generator in generators:
        rows += _generated(out, prompts, generator, clips, seed, log)
    rows.sort(key=lambda row: (row.first_frame or "", row.clip))
    write_ratings(out / RATINGS, rows)
    return out / RATINGS


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


def _is_done(out: Path, settings: dict[str, Any]) -> bool:
    """Creates the folder and records its settings. Returns whether it is finished already.

    Raises `ConfigError` if the folder was built with other settings.
    """
    record = out / SETTINGS
    if record.is_file() and json.loads(record.read_text()) != settings:
        raise ConfigError(
            f"{out}: holds clips that were made from other inputs or with other options; choose another --out"
        )
    for name in ("clips", "frames"):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_whole(record, json.dumps(settings, indent=1) + "\n")
    return (out / RATINGS).is_file()


def _prompts(table: Path) -> list[Prompt]:
    """Returns the prompts of a file in order."""
    return [
        Prompt(
            ordinal=i,
            id=data["id"],
            text=data["prompt"],
            image=(table.parent / data["image"]).read_bytes(),
            character=data.get("character"),
            category=data.get("category"),
        )
        for i, (_, data) in enumerate(read_table(table, "prompt file"))
    ]


def _row(out: Path, prompt: Prompt, source: str, clip: str) -> RatedClip:
    frame = f"frames/{digest(prompt.image or b'')[:12]}.png"
    if not (out / frame).exists():
        _keep(out / frame, prompt.image or b"")
    parts = {"prompt": prompt.text, "character": prompt.character, "category": prompt.category}
    return RatedClip(clip=clip, first_frame=frame, source=source, **parts)


def _name(seed: int, *what: object) -> str:
    return f"clips/{digest('|'.join(map(str, (seed, *what))).encode())[:12]}.mp4"


def _keep(path: Path, data: bytes) -> None:
    """Writes atomically, because an existing file is taken as complete."""
    with replacing(path) as draft:
        draft.write_bytes(data)


def _source_clips(
    videos: Path, out: Path, prompts: Sequence[Prompt], size: ModelConfig, seed: int, log: Log
) -> list[RatedClip]:
    rows, short = [], 0
    for prompt in prompts:
        clip = _name(seed, prompt.id, REAL, 0)
        try:
            if not (out / clip).exists():
                _keep(out / clip, encode_mp4(source_clip((videos / prompt.id).read_bytes(), size), size.fps))
            rows.append(_row(out, prompt, REAL, clip))
        except ValueError as error:
            short += 1
            log(f"{videos / prompt.id}: no source clip: {error}")
    log(f"{len(rows)} source clips" + (f"; {short} videos have none" if short else ""))
    return rows


def source_clip(data: bytes, size: ModelConfig) -> np.ndarray:
    """Returns a video from its third frame on in a model's format: uint8 ``[frames, height, width, 3]`` at `size.fps`.

    Takes the nearest frames in time, scales them to cover the size and center-crops them. Raises `ValueError` if the
    video is too short.
    """
    count, fps = clip_length(data)
    chosen = [THIRD + round(i * fps / size.fps) for i in range(size.frames)]
    if chosen[-1] >= count:
        seconds = (size.frames - 1) / size.fps
        raise ValueError(f"too short: {count} frames at {fps:g} fps; {seconds:g} s after the third frame are needed")
    return np.stack([fit(Image.fromarray(one), size.height, size.width) for one in decode_frames(data, chosen)])


def _generated(
    out: Path, prompts: Sequence[Prompt], generator: Generator, clips: int, seed: int, log: Log
) -> list[RatedClip]:
    sampler: Sampler | None = None
    rows: list[RatedClip] = []
    for prompt in prompts:
        names = [_name(seed, prompt.id, generator.name, k) for k in range(clips)]
        if missing := [k for k, name in enumerate(names) if not (out / name).exists()]:
            sampler = sampler or generator.sampler()
            seeds = [candidate_seed(seed, f"ratings {generator.name}", prompt.ordinal, k) for k in range(clips)]
            for made in sampler.sample(prompt, sampler.encode(prompt), seeds, missing):
                _keep(out / names[made.index], made.clip)
            log(f"{generator.name}: {prompt.ordinal + 1}/{len(prompts)} prompts")
        rows += [_row(out, prompt, generator.name, name) for name in names]
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
