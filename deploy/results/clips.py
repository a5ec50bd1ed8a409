"""Scores clips outside a run, in the same way as a run (`douga score`)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from common.config import RunConfig
from common.data.tables import caption_of
from common.data.video import decode_clip
from common.errors import ConfigError
from common.files import read_file
from common.images import encode_png
from common.messages import Prompt, ScoreTask
from common.reward_composition import mean_score, reward_weights
from common.stacked_table import StackedTable
from deploy.results import comparison
from deploy.run_dir.samples import SAMPLES, read_samples
from rewarders.judges import open_rewards
from rewarders.rewarder import rewarder_for


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
    text = caption_of("--text", text)
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
        return read_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _frames(path: Path, clip: bytes) -> np.ndarray:
    try:
        return decode_clip(clip)
    except ValueError as error:
        raise ConfigError(f"{path}: not a readable video: {error}") from None


def score_table(rows: Sequence[Mapping[str, Any]]) -> StackedTable:
    """Returns the rows of `score_clips` as a table; several rows get a mean row."""
    names = [name for name in rows[0] if name != "clip"]
    cells = [(escape(row["clip"]), *(f"{row[name]:.2f}" for name in names)) for row in rows]
    if len(rows) > 1:
        cells.append(("mean", *(f"{np.mean([row[name] for row in rows]):.2f}" for name in names)))
    return StackedTable("scores, 0..100", ["clip", *names], cells, sections=[len(rows)])
