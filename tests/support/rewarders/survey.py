"""A few clips of moving squares, as files, and a survey of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.video import encode_for_browsers, encode_mp4
from rewarders.annotation.items import SurveyClip, make_pairs
from rewarders.annotation.rubric import open_rubric
from rewarders.annotation.store import STORE, Store
from rewarders.annotation.survey import Survey

FPS = 8


def frames(colour: int, count: int = 16, height: int = 48, width: int = 64) -> np.ndarray:
    """A square of a given colour that moves to the right."""
    clip = np.full((count, height, width, 3), 235, np.uint8)
    for at in range(count):
        left = 4 + at * 2
        clip[at, 14:34, left : left + 20] = (40 * colour % 256, 90, 255 - 50 * colour % 256)
    return clip


def write_clips(folder: Path, names: Sequence[str], count: int = 16, first: int = 0) -> list[Path]:
    """Write mp4 files in the colours from number `first` on, every second one in the sampler's format (4:4:4)."""
    paths = []
    for number, name in enumerate(names, start=first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encode = encode_mp4 if number % 2 else encode_for_browsers
        path.write_bytes(encode(frames(number, count), FPS))
        paths.append(path)
    return paths


def clips(folder: Path, prompts: int = 3, sources: Sequence[str] = ("base", "aligned")) -> list[SurveyClip]:
    """One clip of every source for every prompt."""
    found = []
    for place, source in enumerate(sources):
        names = [f"{source}/{prompt}.mp4" for prompt in range(prompts)]
        paths = write_clips(folder, names, first=place * prompts)
        found += [
            SurveyClip(
                f"{source}/{prompt}.mp4", f"square {prompt} walks", source, category="walk",
                file=path, read=path.read_bytes, first_frame=None,
            )
            for prompt, path in enumerate(paths)
        ]  # fmt: skip
    return found


def survey(folder: Path, rubric: str = "huvidpo", clock: Any = None, **how: Any) -> Survey:
    """Six clips and three pairs, in `folder`."""
    shown = clips(folder)
    store = Store(folder / STORE, *([] if clock is None else [clock]))
    return Survey(shown, make_pairs(shown, 200, 0), open_rubric(rubric), store, **how)


def all_of(survey: Survey, value: int) -> dict[str, int]:
    """The same rating in every dimension."""
    return dict.fromkeys(survey.rubric.names, value)
