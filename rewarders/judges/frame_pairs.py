"""What all metrics of consecutive frames share: a judge with one output and no model, the mean over pairs of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.interface import Clip, JudgeResult
from rewarders.judges.adapter import InputSpec


class FramePairMetric(ABC):
    """A `rewarders.interface.Judge`. A clip with one frame, or with frames below `smallest`, gets no score."""

    name: ClassVar[str]
    needs: ClassVar[InputSpec]
    smallest: ClassVar[int] = 1  # pixels, each side
    version = 1  # increase it with every change that alters a value

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` is set: there is no model."""
        if judge.path:
            raise ConfigError(f"path = {judge.path!r}: {self.name} has no model; leave it empty")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The metric's name."""
        return (self.name,)

    @property
    def digest(self) -> str:
        """The metric and its version: there are no weights."""
        return f"{self.name} {self.version}"

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`."""
        return [self._refusal(clip) or {self.name: self.value(clip)} for clip in clips]

    def value(self, clip: Clip) -> float:
        """The raw value of a clip with at least two frames; higher is better."""
        return float(np.mean([self.pair(before, after) for before, after in pairwise(clip.frames)]))

    @abstractmethod
    def pair(self, before: np.ndarray, after: np.ndarray) -> float:
        """The value of two consecutive frames, uint8 ``[H, W, 3]``."""

    def _refusal(self, clip: Clip) -> str:
        count, height, width = clip.frames.shape[:3]
        if count < 2:
            return "a clip of 1 frame; at least 2 are needed"
        if min(height, width) < self.smallest:
            return f"a clip of {height} x {width} pixels; each side must have at least {self.smallest}"
        return ""
