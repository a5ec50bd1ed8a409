"""Shows two made clips to a run's rewards, and to the held-out judges of its guardrails, before anything is sampled.

Sampling a clip can take minutes of a GPU.

A reward raises `ValueError` for a clip of an unsupported shape or frame rate (`rewarders/interface.py`). If it does so
for both clips, it can score nothing of this run. A reward that gives a reason or NaN may miss something that made clips
lack, so it is only in doubt: it has to score the run's first real clip (`Rewarder.doubts`).

Both clips are then scored again, as one batch: a score that depends on chance or on the rest of the batch is logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.config import ModelConfig
from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.errors.places import describe_error
from common.images import encode_png
from common.messages import Prompt, Purpose
from rewarders.interface import Clip, Judge, JudgeFailedError, JudgeResult, JudgeUnavailableError
from rewarders.judging.results import UnexpectedError, checked_results
from rewarders.judging.thread import Call, JudgeHangsError
from rewarders.rewarder import Rewarder

log = logging.getLogger(__name__)

TEXT = "a robot walks right in the snow"
MOST_DIFFERENCE = 0.1  # of 100: by which two scores of a clip may differ, alone and in a batch


def rehearse(rewarder: Rewarder, model: ModelConfig) -> None:
    """Fills `rewarder.doubts` with the rewards that score neither clip: output -> the reason.

    Raises `ConfigError`, in the reward's words, if one of them refuses every clip of the model's size and rate.
    """
    clips = made_clips(model)
    for judge in rewarder.judges:
        found = [_results(judge, [clip], rewarder.call)[0] for clip in clips]
        if all(isinstance(one, ValueError) for one in found):
            size = f"{model.frames}x{model.height}x{model.width} at {model.fps} fps"
            raise ConfigError(
                f"{rewarder.what} {', '.join(judge.outputs)}: no clip of {size} can be scored: {one_line(found[0])}"
            )
        for output in judge.outputs:
            reasons = [_missing(one, output) for one in found]
            if all(reasons):
                rewarder.doubts[output] = reasons[0]
        alone = [one for one in found if isinstance(one, dict) and all(map(math.isfinite, one.values()))]
        if len(alone) == len(clips):
            _compare(judge, alone, _results(judge, clips, rewarder.call))


def made_clips(model: ModelConfig) -> list[Clip]:
    """Returns a picture that moves to the right, and noise: two clips of the model's size and rate."""
    frames, height, width = model.frames, model.height, model.width
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([255 * x // width, 255 * y // height, 255 * ((x + y) // 16 % 2)], -1).astype(np.uint8)
    moving = np.stack([np.roll(picture, 2 * frame, 1) for frame in range(frames)])
    noise = np.random.default_rng(0).integers(0, 256, moving.shape, np.uint8)
    return [Clip(moving, float(model.fps)), Clip(noise, float(model.fps))]


def _results(judge: Judge, clips: Sequence[Clip], call: Call) -> list[JudgeResult | ValueError | None]:
    """The judge's answers or its refusal; None if it is not there, which the run's own scoring reports."""
    prompts = [Prompt(0, "rehearsal", TEXT, encode_png(clip.frames[0]), purpose=Purpose.PROBE) for clip in clips]
    name = ", ".join(judge.outputs)
    try:
        answer = call(f"judge {name}: scoring a made clip", lambda: judge.judge(clips, prompts))
        return [*checked_results(judge.outputs, answer, len(clips))]
    except (ConfigError, JudgeHangsError):
        raise
    except (JudgeUnavailableError, JudgeFailedError):
        return [None] * len(clips)
    except ValueError as error:
        return [error] * len(clips)
    except Exception as error:  # a user's class may raise anything
        reraise_oom(error)
        return [UnexpectedError(f"judge {name}: {describe_error(error)}")] * len(clips)


def _missing(result: JudgeResult | ValueError | None, output: str) -> str:
    """Why `result` has no value of `output`; "" if it has one, or if that is not known."""
    if isinstance(result, dict):
        return "" if math.isfinite(result[output]) else f"{output} is {result[output]}"
    return "" if result is None else str(result)


def _compare(judge: Judge, alone: Sequence[Mapping[str, float]], together: Sequence[Any]) -> None:
    """Logs the first score that differs between a clip alone and the same clip in a batch."""
    for one, other in zip(alone, together, strict=True):
        for output in judge.outputs if isinstance(other, dict) else ():
            if abs(one[output] - other[output]) > MOST_DIFFERENCE:  # not if one of them is NaN
                log.warning(
                    "reward %s gave the same clip %.2f alone and %.2f in a batch of 2: a score may depend on the clip "
                    "and its prompt only, or pairs are partly chance and a resumed run has other weights",
                    output, one[output], other[output],
                )  # fmt: skip
                return
