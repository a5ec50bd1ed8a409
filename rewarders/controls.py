"""Controls: clips that a good judge must not prefer, made from the clips that it judges.

| control | what it is | a judge that prefers it |
|---|---|---|
| `frozen` | the first frame, repeated | rewards a clip for not moving |
| `flicker` | the clip, frames brighter and darker by `LEVELS` in turn | does not see flicker, or takes it for motion |

Consistency metrics prefer the frozen clip by definition. Then a gain is only one if a measure of motion does not fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.messages import Prompt
from rewarders.interface import Clip, Judge
from rewarders.judging.results import judge_clips

LEVELS = 16  # of 255


def frozen(clip: Clip) -> Clip:
    """A clip of the same length that repeats the first frame."""
    return Clip(np.repeat(clip.frames[:1], len(clip.frames), axis=0), clip.fps)


def flicker(clip: Clip, levels: int = LEVELS) -> Clip:
    """The clip with alternating brightness: frames 0, 2, ... by `levels` of 255 brighter, 1, 3, ... darker, clamped."""
    shift = np.where(np.arange(len(clip.frames)) % 2 == 0, levels, -levels).astype(np.int16)
    return Clip(np.clip(clip.frames + shift[:, None, None, None], 0, 255).astype(np.uint8), clip.fps)


CONTROLS: Mapping[str, Callable[[Clip], Clip]] = {"frozen": frozen, "flicker": flicker}


@dataclass(frozen=True)
class ControlResult:
    """How one output of a judge compares a control with the clips it was made from."""

    clips: int  # clips that have a score, and whose control has one
    clip_mean: float  # mean score of the clips; NaN without clips
    control_mean: float  # mean score of their controls
    preferred: float  # share of clips whose control scores higher, 0..1; a tie counts as one half


def compare_with_controls(judge: Judge, clips: Iterable[tuple[Clip, Prompt]]) -> dict[str, dict[str, ControlResult]]:
    """Returns control -> output of the judge -> result, reading the clips one at a time.

    A control has the prompt of its clip, with its image. A clip that the judge refuses, or whose control it refuses,
    does not count.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {
        (control, output): [] for control in CONTROLS for output in judge.outputs
    }
    for clip, prompt in clips:
        shown = [clip, *(make(clip) for make in CONTROLS.values())]
        score, *others = judge_clips(judge, shown, [prompt] * len(shown))
        for control, other in zip(CONTROLS, others, strict=True):
            if not isinstance(score, str) and not isinstance(other, str):
                for output in judge.outputs:
                    pairs[control, output].append((score[output], other[output]))
    return {control: {output: _result(pairs[control, output]) for output in judge.outputs} for control in CONTROLS}


def _result(pairs: Sequence[tuple[float, float]]) -> ControlResult:
    values = np.array([pair for pair in pairs if np.isfinite(pair).all()], np.float64).reshape(-1, 2)
    if not len(values):
        return ControlResult(0, np.nan, np.nan, np.nan)
    clip_mean, control_mean = values.mean(0)
    higher = (np.sign(values[:, 1] - values[:, 0]) + 1) / 2
    return ControlResult(len(values), float(clip_mean), float(control_mean), float(higher.mean()))
