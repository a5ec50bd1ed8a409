"""Shows two made clips to a run's rewards, and to the held-out judges of its guardrails, before anything is sampled.

Sampling a clip can take minutes of a GPU.

A reward raises `ValueError` for a clip of an unsupported shape or frame rate (`rewarders/interface.py`). If it does so
for both clips, it can score nothing of this run. A reward that gives a reason or NaN may miss something that made clips
lack, so it is only in doubt: it has to score the run's first real clip (`Rewarder.doubts`).
"""

from __future__ import annotations

import math

import numpy as np

from common.config import ModelConfig
from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.images import encode_png
from common.messages import Prompt, Purpose
from rewarders.interface import Clip, Judge, JudgeResult
from rewarders.rewarder import Rewarder

TEXT = "a robot walks right in the snow"


def rehearse(rewarder: Rewarder, model: ModelConfig) -> None:
    """Fills `rewarder.doubts` with the rewards that score neither clip: output -> the reason.

    Raises `ConfigError`, in the reward's words, if one of them refuses every clip of the model's size and rate.
    """
    clips = made_clips(model)
    for judge in rewarder.judges:
        found = [_result(judge, clip) for clip in clips]
        if all(isinstance(one, ValueError) for one in found):
            size = f"{model.frames}x{model.height}x{model.width} at {model.fps} fps"
            raise ConfigError(
                f"{rewarder.what} {', '.join(judge.outputs)}: no clip of {size} can be scored: {one_line(found[0])}"
            )
        for output in judge.outputs:
            reasons = [_missing(one, output) for one in found]
            if all(reasons):
                rewarder.doubts[output] = reasons[0]


def made_clips(model: ModelConfig) -> list[Clip]:
    """Returns a picture that moves to the right, and noise: two clips of the model's size and rate."""
    frames, height, width = model.frames, model.height, model.width
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([255 * x // width, 255 * y // height, 255 * ((x + y) // 16 % 2)], -1).astype(np.uint8)
    moving = np.stack([np.roll(picture, 2 * frame, 1) for frame in range(frames)])
    noise = np.random.default_rng(0).integers(0, 256, moving.shape, np.uint8)
    return [Clip(moving, float(model.fps)), Clip(noise, float(model.fps))]


def _result(judge: Judge, clip: Clip) -> JudgeResult | ValueError | None:
    """The judge's answer or refusal; None if it failed in another way, which the run's own scoring reports."""
    prompt = Prompt(0, "rehearsal", TEXT, encode_png(clip.frames[0]), purpose=Purpose.PROBE)
    try:
        return next(iter(judge.judge([clip], [prompt])))
    except ConfigError:
        raise
    except ValueError as error:
        return error
    except Exception as error:  # a user's class may raise anything
        reraise_oom(error)
        return None


def _missing(result: JudgeResult | ValueError | None, output: str) -> str:
    """Why `result` has no value of `output`; "" if it has one, or if that is not known."""
    if isinstance(result, dict):
        return "" if math.isfinite(result.get(output, math.nan)) else f"{output} is {result.get(output, math.nan)}"
    return "" if result is None else str(result)
