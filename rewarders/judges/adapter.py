"""Shows a judge what it was made for, and brings its values to 0..100.

```
clip (8 fps, 49 frames, 480x720) --> fps: nearest frames at 0, 1/fps, 2/fps ... s
                                 --> frames: so many, evenly from the first of these to the last
                                 --> size: bicubic, the ratio of the sides is not kept
judge --> raw value --> 100 (raw - low) / (high - low), not clamped
```

Frames are never made up: a clip of a lower frame rate, or of fewer frames than the judge needs, is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from PIL import Image

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip, Judge, Opinion

SAME_RATE = 0.01  # share by which two frame rates may differ and still count as one: 23.976 is 24


@dataclass(frozen=True)
class InputSpec:
    """What a judge must be shown, and the range of its values. 0 and empty: it takes what comes."""

    fps: float = 0.0  # frames per second
    frames: int = 0
    size: tuple[int, ...] = ()  # height, width in pixels
    low: float = 0.0  # the raw value that becomes 0
    high: float = 100.0  # the raw value that becomes 100
    multiple: int = 1  # what the number of frames can be divided by: 2 for a model that reads them in pairs


def needs_of(config: JudgeConfig, own: InputSpec) -> InputSpec:
    """A kind's `own` needs, with what the configuration says instead. `ConfigError` for frames that are no multiple."""
    low, high = (config.low, config.high) if config.low < config.high else (own.low, own.high)
    if config.frames % own.multiple:
        raise ConfigError(f"frames = {config.frames}: a multiple of {own.multiple} is needed")
    frames = config.frames or own.frames
    return InputSpec(config.fps or own.fps, frames, config.size or own.size, low, high, own.multiple)


class AdaptedJudge:
    """A `Judge` that is shown what it needs, and whose values are brought to 0..100."""

    def __init__(self, judge: Judge, config: JudgeConfig, own: InputSpec | None = None) -> None:
        self.needs = needs_of(config, own or InputSpec())
        self._judge = judge

    @property
    def outputs(self) -> tuple[str, ...]:
        """The judge's."""
        return self._judge.outputs

    @property
    def digest(self) -> str:
        """Over the judge and what it is shown."""
        return blake2b(f"{self._judge.digest}|{self.needs}".encode(), digest_size=16).hexdigest()

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """See `Judge.judge`; `ValueError` also for a clip that cannot be shown."""
        if len(clips) != len(prompts):
            raise ValueError(f"{len(clips)} clips but {len(prompts)} prompts")
        raw = self._judge.judge([show(clip, self.needs) for clip in clips], prompts)
        if len(raw) != len(clips):
            raise ValueError(f"{len(raw)} answers to {len(clips)} clips")
        return [one if isinstance(one, str) else self._scaled(one) for one in raw]

    def _scaled(self, values: dict[str, float]) -> dict[str, float]:
        low, scale = self.needs.low, 100.0 / (self.needs.high - self.needs.low)
        return {output: scale * (float(values[output]) - low) for output in self.outputs}


class Named:
    """A `Judge` under the name it has in a run: its output is ``NAME``, or ``NAME.OUTPUT`` where it has several."""

    def __init__(self, name: str, judge: Judge) -> None:
        several = len(judge.outputs) > 1
        self._judge, self._names = judge, {one: f"{name}.{one}" if several else name for one in judge.outputs}
        self.outputs, self.digest = tuple(self._names.values()), judge.digest

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """See `Judge.judge`."""
        found = self._judge.judge(clips, prompts)
        return [one if isinstance(one, str) else {name: one[own] for own, name in self._names.items()} for one in found]


def show(clip: Clip, needs: InputSpec) -> Clip:
    """The clip as the judge needs it; the clip itself where nothing must change. `ValueError` when it cannot be."""
    chosen, fps = _in_time(len(clip.frames), clip.fps, needs)
    same = len(chosen) == len(clip.frames)
    size = needs.size or clip.frames.shape[1:3]
    if same and size == clip.frames.shape[1:3]:
        return clip
    frames = clip.frames if same else clip.frames[chosen]
    return Clip(resize(frames, (size[0], size[1])), clip.fps if same else fps)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[F, H, W, 3]`` -> ``[F, h, w, 3]`` for `size` = (h, w), bicubic with antialiasing."""
    if frames.shape[1:3] == size:
        return frames
    how = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize((size[1], size[0]), how)) for frame in frames])


def _in_time(count: int, fps: float, needs: InputSpec) -> tuple[np.ndarray, float]:
    """Indices of the frames to show, ascending, and the frame rate that they have then."""
    chosen = np.arange(count)
    if needs.fps and not _same(fps, needs.fps):
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


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_RATE * other
