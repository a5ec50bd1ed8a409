"""Generates and scores clips outside a run, in the same way as a run (`douga sample`, `douga score`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from actors.ddim_inversion import InvertedSampler
from actors.prompts.source import open_prompts
from actors.sampler import Sampler
from common.config import RunConfig
from common.data.video import contact_sheet, decode_clip
from common.errors import ConfigError
from common.files import write_whole
from common.images import encode_png
from common.messages import Prompt, ScoreTask
from common.models.cogvideox import open_model
from common.reward_composition import mean_score, reward_weights
from common.seeds import candidate_seed
from common.weights.store import WeightStore
from deploy.results import comparison
from deploy.run_dir.samples import SAMPLES, read_samples
from rewarders.judges import open_rewards
from rewarders.rewarder import rewarder_for

SHEET = "sheet.png"


def make_samples(
    config: RunConfig, weights: WeightStore | None, version: int, count: int, out: Path, invert: Path | None = None
) -> None:
    """Samples one clip for each of `count` prompts; writes clips, first frames, samples.json and sheet.png to `out`.

    With `weights` and a `version` above 0, samples with that version, else with the base model. With `invert`, all
    clips start from the DDIM-inverted noise of that clip.
    """
    model = open_model(config.model.path)
    prompts = _prompts(config, model.image_conditioned, count)
    sampler = InvertedSampler(model, config, invert) if invert else Sampler(model, config)
    if weights is not None and version:
        sampler.load(*weights.load(version))
    out.mkdir(parents=True, exist_ok=True)
    records, clips = [], []
    for prompt in prompts:
        seed = candidate_seed(config.seed, "sample", prompt.ordinal, 0)
        (made,) = sampler.sample(prompt, sampler.encode(prompt), [seed], [0])
        record: dict[str, Any] = _keep_sample(out, prompt, made.clip) | {"seed": seed, "version": sampler.version}
        records.append(record)
        clips.append(decode_clip(made.clip))
        print(out / record["clip"], "-", prompt.text)
    contact_sheet(clips).save(out / SHEET)
    write_whole(out / SAMPLES, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def _prompts(config: RunConfig, needs_image: bool, count: int) -> list[Prompt]:
    source = open_prompts(config.prompts, config.seed, needs_image, (config.model.height, config.model.width))
    if config.prompts == "toon":
        return source.heldout(count, config.seed)
    return [source(ordinal) for ordinal in range(count)]


def _keep_sample(folder: Path, prompt: Prompt, clip: bytes) -> dict[str, Any]:
    name = f"{prompt.ordinal:04d}"
    (folder / f"{name}.mp4").write_bytes(clip)
    record = {"clip": f"{name}.mp4", "id": prompt.id, "text": prompt.text}
    record |= {"character": prompt.character, "category": prompt.category}
    if prompt.image is None:
        return record
    (folder / f"{name}.png").write_bytes(prompt.image)
    return record | {"image": f"{name}.png"}


def score_clips(
    config: RunConfig, places: Sequence[Path], text: str | None, image: Path | None
) -> list[dict[str, Any]]:
    """Returns a row per clip: the scores of all configured rewards, 0..100, and their weighted mean.

    `places` are mp4 files with the caption `text` and the first frame `image` (default: the clip's frame 0), or folders
    with a samples.json. A clip without a finite score is skipped with a message on stderr. Raises `ConfigError` if no
    clip has scores, or if a file is missing or unreadable.
    """
    tasks = [task for place in places for task in _score_tasks(place, text, image)]
    rewarder = rewarder_for(open_rewards(config.reward, config.model.device), config.reward)
    reward_weights(config.reward, rewarder.dimensions)  # raises before scoring if a weighted dimension has no reward
    rows = []
    for task, one in zip(tasks, rewarder.score(tasks), strict=True):
        broken = next((name for name, value in one.values.items() if not math.isfinite(value)), None)
        if broken is None:
            mean = mean_score(config.reward, one.values)
            rows.append({"clip": task.candidate_id, comparison.REWARD: mean, **one.values})
        else:
            why = one.problems.get(broken, "no finite score")
            print(f"douga: {task.candidate_id}: {broken}: {why}; left out", file=sys.stderr)
    if not rows:
        raise ConfigError(f"none of {len(tasks)} clips could be scored")
    return rows


def _score_tasks(place: Path, text: str | None, image: Path | None) -> list[ScoreTask]:
    if place.is_dir():
        return [_sample_task(place, record) for record in read_samples(place)]
    clip = _bytes(place)
    if not text:
        raise ConfigError(f"{place}: no caption; give --text, or a folder with a {SAMPLES}")
    first = _bytes(image) if image else encode_png(_frames(place, clip)[0])
    return [ScoreTask(str(place), Prompt(0, place.stem, text, first), clip)]


def _sample_task(folder: Path, record: Mapping[str, Any]) -> ScoreTask:
    path = folder / record["clip"]
    clip = _bytes(path)
    image = _bytes(folder / record["image"]) if "image" in record else encode_png(_frames(path, clip)[0])
    name, character, category = record.get("id", path.stem), record.get("character"), record.get("category")
    prompt = Prompt(0, name, record["text"], image, character=character, category=category)
    return ScoreTask(str(path), prompt, clip)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _frames(path: Path, clip: bytes) -> np.ndarray:
    try:
        return decode_clip(clip)
    except ValueError as error:
        raise ConfigError(f"{path}: not a readable video: {error}") from None


def score_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the rows of `score_clips` as a table; several rows get a mean row."""
    grid = Table(title="scores, 0..100")
    names = [name for name in rows[0] if name != "clip"]
    grid.add_column("clip")
    for name in names:
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(row["clip"], *(f"{row[name]:.2f}" for name in names))
    if len(rows) > 1:
        grid.add_section()
        grid.add_row("mean", *(f"{np.mean([row[name] for row in rows]):.2f}" for name in names))
    return grid
