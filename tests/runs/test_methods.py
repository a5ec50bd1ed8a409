"""Whole online runs of the methods on the toon world, under a reward whose direction nobody can miss: bright clips.

Every run samples its own candidates with the current policy, and is compared with the base model on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.methods import REFRESHES, methods
from benchmarks.training.runs import COMMON
from common.config import DIMENSIONS, load_config
from common.intervals import mean_interval
from common.messages import Prompt
from deploy.run_dir import layout
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import serial

STEPS, K = 5, 2
ROWS = {variant.label: variant for variant in methods(K * REFRESHES)}
SMALL = {"steps": STEPS, "learner.batch_size": 4, "learner.lr": 3e-4, "sampler.steps": 2, "evaluation.prompts": 8}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread")]


class Brightness:
    """The mean of all pixels after the first frame, in percent."""

    digest = "brightness"

    def __init__(self, dimension: str) -> None:
        self.dimension = dimension

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        return [float(clip[1:].mean()) / 2.55 for clip in clips]


@pytest.mark.parametrize("label", ["online-sft", "online-dpo", "onlinevpo", "online-gapo"])
def test_an_online_method_makes_brighter_clips(label: str, tmp_path: Path) -> None:
    own = SMALL | dict(ROWS[label].flags) | {"root": tmp_path, "name": label}
    config = load_config(layout.TOON, COMMON | {key: str(value) for key, value in own.items()})
    result = serial.run(config, [Brightness(name) for name in DIMENSIONS]).result
    assert result is not None
    sides = [[one[side]["learned"]["reward"] for one in result["by_prompt"]] for side in ("base", "aligned")]
    gains = np.array(sides[1]) - np.array(sides[0])
    print(f"{label}: {gains.mean():+.2f}")
    assert mean_interval(gains).low > 0.5
    steps = read_json_lines(config.folder / "metrics.jsonl")
    assert [one["lag_max"] for one in steps] == [0] * STEPS
    refreshed = [one["step"] for one in steps if one["refreshed"]]
    assert refreshed == ([2, 4] if label == "onlinevpo" else [])
