"""Converts clips to a judge's input format, and its raw values to 0..100.

```
clip (8 fps, 49 frames, 480x720) --> fps: the nearest frames at 0, 1/fps, 2/fps ... s
                                 --> frames: this many, evenly spaced from the first of these to the last
                                 --> size: bicubic; the aspect ratio is not kept
judge --> raw value --> 100 (raw - low) / (high - low), not clamped
```

Frames are never repeated or interpolated. A clip with a lower frame rate or fewer frames than the judge needs is
refused with a message that says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from PIL import Image

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip, Judge, JudgeResult
from rewarders.judging.results import checked_results

RATE_TOLERANCE = 0.01  # relative difference below which two frame rates count as equal: 23.976 is 24


@dataclass(frozen=True)
class InputSpec:
    """The clip format that a judge needs and the range of its raw values. 0 and empty mean any."""

    fps: float = 0.0  # frames per second
    frames: int = 0
    size: tuple[int, ...] = ()  # height, width in pixels
    low: float = 0.0  # the raw value that maps to 0
    high: float = 100.0  # the raw value that maps to 100
    multiple: int = 1  # the number of frames must be divisible by it; 2 for models that read frames in pairs


def input_spec_of(config: JudgeConfig, own: InputSpec) -> InputSpec:
    """Returns the kind's `own` needs, overridden by the configuration. Raises `ConfigError` if `frames` is not a
    multiple of `own.multiple`."""
    low, high = (config.low, config.high) if config.low < config.high else (own.low, own.high)
    if config.frames % own.multiple:
        raise ConfigError(f"frames = {config.frames}: must be a multiple of {own.multiple}")
    frames = config.frames or own.frames
    return InputSpec(config.fps or own.fps, frames, config.size or own.size, low, high, own.multiple)


class AdaptedJudge:
    """Wraps a `Judge`: adapts its input clips and scales its raw values to 0..100."""

    def __init__(self, judge: Judge, config: JudgeConfig, own: InputSpec | None = None) -> None:
        self.needs = input_spec_of(config, own or InputSpec())
        self._judge = judge
        self._options = f"|{json.dumps(config.options, sort_keys=True)}" if config.options else ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The judge's outputs."""
        return self._judge.outputs

    @property
    def digest(self) -> str:
        """Covers the judge, its options and its input format."""
        return blake2b(f"{self._judge.digest}|{self.needs}{self._options}".encode(), digest_size=16).hexdigest()

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`. Also raises `ValueError` for a clip that cannot be adapted."""
        if len(clips) != len(prompts):
            raise ValueError(f"{len(clips)} clips but {len(prompts)} prompts")
        raw = self._judge.judge([_own(adapt_clip(clip, self.needs), clip) for clip in clips], prompts)
        results = checked_results(self.outputs, raw, len(clips))
        return [one if isinstance(one, str) else self._scaled(one) for one in results]

    def _scaled(self, values: dict[str, float]) -> dict[str, float]:
        low, scale = self.needs.low, 100.0 / (self.needs.high - self.needs.low)
        return {output: scale * (value - low) for output, value in values.items()}


def _own(adapted: Clip, clip: Clip) -> Clip:
    """The adapted clip with pixels of its own: a judge may write into them, and others are given the clip, too."""
    return replace(adapted, frames=clip.frames.copy()) if adapted.frames is clip.frames else adapted


class NamedJudge:
    """A `Judge` under its name in the run: the output is ``NAME``, or ``NAME.OUTPUT`` if the judge has several."""

    def __init__(self, name: str, judge: Judge) -> None:
        several = len(judge.outputs) > 1
        self._judge, self._names = judge, {own: f"{name}.{own}" if several else name for own in judge.outputs}
        self.outputs, self.digest = tuple(self._names.values()), judge.digest

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`."""
        results = self._judge.judge(clips, prompts)
        return [
            one if isinstance(one, str) else {name: one[own] for own, name in self._names.items()} for one in results
        ]


def adapt_clip(clip: Clip, needs: InputSpec) -> Clip:
    """Returns the clip in the format of `needs`, or the clip itself if it already fits. Raises `ValueError` if it
    cannot be adapted."""
    chosen, fps = _select_frames(len(clip.frames), clip.fps, needs)
    same = len(chosen) == len(clip.frames)
    size = needs.size or clip.frames.shape[1:3]
    if same and size == clip.frames.shape[1:3]:
        return clip
    frames = clip.frames if same else clip.frames[chosen]
    return Clip(resize(frames, (size[0], size[1])), clip.fps if same else fps)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 ``[F, H, W, 3]`` to ``[F, h, w, 3]`` for `size` = (h, w), bicubic with antialiasing."""
    if frames.shape[1:3] == size:
        return frames
    how = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize((size[1], size[0]), how)) for frame in frames])


def _select_frames(count: int, fps: float, needs: InputSpec) -> tuple[np.ndarray, float]:
    """Returns the ascending indices of the selected frames, and their frame rate."""
    chosen = np.arange(count)
    if needs.fps and not same_rate(fps, needs.fps):
        if fps < needs.fps:
            raise ValueError(f"a clip of {fps:g} frames per second; {needs.fps:g} are needed")
        step = fps / needs.fps
        chosen = np.floor(np.arange(0, count, step) + 0.5).astype(int)
        chosen, fps = chosen[chosen < count], needs.fps
    wanted = needs.frames or max(len(chosen) // needs.multiple, 1) * needs.multiple
    if wanted == len(chosen):
        return chosen, fps
    if len(chosen) < wanted:
        raise ValueError(f"a clip of {len(chosen)} frames at {fps:g} per second; {wanted} frames are needed")
    even = np.floor(np.linspace(chosen[0], chosen[-1], wanted) + 0.5).astype(int)
    return even, fps * max(1, wanted - 1) / (len(chosen) - 1)


def same_rate(one: float, other: float) -> bool:
    """Whether two frame rates count as equal."""
    return abs(one - other) <= RATE_TOLERANCE * other
