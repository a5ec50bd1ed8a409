"""Controls of a judge: what they are, and which of the metrics prefer them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from common.config import JudgeConfig
from common.messages import Prompt
from rewarders.controls import CONTROLS, ControlResult, compare_with_controls, flicker, frozen
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.registry import open_judge

ASKED = Prompt(0, "p", "walks")


def sliding(seed: int, step: int = 2, frames: int = 5) -> Clip:
    """A smooth texture that slides right."""
    coarse = np.random.default_rng(seed).integers(40, 215, (6, 20)).repeat(8, 0).repeat(8, 1).astype(float)
    for axis in (0, 1):
        coarse = np.mean([np.roll(coarse, k, axis) for k in range(-4, 5)], 0)
    views = [coarse[:, 32 - t * step : 96 - t * step] for t in range(frames)]
    return Clip(np.stack(views).astype(np.uint8)[..., None].repeat(3, -1), 8.0, file=b"the original")


def test_a_frozen_clip_repeats_its_first_frame() -> None:
    clip = sliding(0)
    still = frozen(clip)
    assert still.frames.shape == clip.frames.shape
    assert (still.frames == clip.frames[0]).all()
    assert (still.fps, still.file) == (8.0, None)  # a judge of files must not see the original


def test_flicker_by_hand() -> None:
    frames = np.full((4, 2, 2, 3), 100, np.uint8)
    frames[:, 0, 0] = 250
    frames[:, 1, 1] = 3
    clip = flicker(Clip(frames, 8.0, file=b"the original"), 10)
    assert clip.frames[:, 0, 1, 0].tolist() == [110, 90, 110, 90]
    assert clip.frames[:, 0, 0, 0].tolist() == [255, 240, 255, 240]
    assert clip.frames[:, 1, 1, 0].tolist() == [13, 0, 13, 0]
    assert clip.frames.dtype == np.uint8
    assert clip.file is None
    assert frames[0, 0, 1, 0] == 100


@pytest.mark.parametrize(
    ("kind", "prefers_frozen", "prefers_flicker"),
    [
        ("frame_ssim", 1.0, 0.0),
        ("frame_mse", 1.0, 0.0),
        ("temporal_flicker", 1.0, 0.0),
        ("warp_error", 1.0, 0.0),
        ("flow_magnitude", 0.0, None),
    ],
)
def test_which_metrics_prefer_the_frozen_clip(kind: str, prefers_frozen: float, prefers_flicker: float | None) -> None:
    judge = open_judge("a", JudgeConfig(kind=kind))
    found = compare_with_controls(judge, ((sliding(seed), ASKED) for seed in range(3)))
    assert set(found) == set(CONTROLS)
    still, flickering = found["frozen"][kind], found["flicker"][kind]
    assert (still.clips, still.preferred) == (3, prefers_frozen)
    assert (still.control_mean > still.clip_mean) == bool(prefers_frozen)
    if prefers_flicker is not None:
        assert flickering.preferred == prefers_flicker


class FirstPixel:
    """Scores the first pixel of the last frame; refuses dark clips; has no value for a bright one."""

    outputs = ("level", "constant")
    digest = "first pixel"

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        values = [float(clip.frames[-1, 0, 0, 0]) for clip in clips]
        if any(value == 19 for value in values):
            raise ValueError("an odd clip")
        return [
            "too dark" if value < 20 else {"level": math.nan if value > 230 else value, "constant": 1.0}
            for value in values
        ]


def test_the_result_by_hand() -> None:
    def ramp(first: int, last: int) -> Clip:
        frames = np.full((3, 2, 2, 3), first, np.uint8)
        frames[-1] = last
        return Clip(frames, 8.0)

    clips = [ramp(50, 60), ramp(90, 60), ramp(70, 70), ramp(10, 80), ramp(100, 240), ramp(19, 80)]
    found = compare_with_controls(FirstPixel(), [(clip, ASKED) for clip in clips])["frozen"]
    # 60 against 50, 60 against 90, 70 against 70; two controls are refused, and the fifth clip has no value
    assert found["level"] == ControlResult(3, pytest.approx(190 / 3), pytest.approx(70), pytest.approx(0.5))
    assert found["constant"] == ControlResult(4, 1.0, 1.0, 0.5)


def test_without_scores_there_is_no_number() -> None:
    dark = Clip(np.zeros((2, 2, 2, 3), np.uint8), 8.0)
    for found in (compare_with_controls(FirstPixel(), [(dark, ASKED)]), compare_with_controls(FirstPixel(), [])):
        result = found["frozen"]["level"]
        assert result.clips == 0
        assert math.isnan(result.preferred)
