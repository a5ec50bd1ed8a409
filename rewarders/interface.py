"""What a reward model is to the rest of the project: a `Reward`, or where pixels do not suffice a `Judge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from common.data.video import encode_mp4
from common.messages import Prompt


class Reward(Protocol):
    """Scores clips in one dimension. A score depends on the clip and its prompt alone, never on the batch it is in."""

    @property
    def dimension(self) -> str:
        """What is scored, e.g. ``smoothness``; unique among the rewards of a run."""
        ...

    @property
    def digest(self) -> str:
        """Identifies weights and code path: equal digests give equal scores."""
        ...

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """One raw value per clip, higher is better (AnimeReward: 0..100).

        `clips` are uint8 ``[F, H, W, 3]``, `prompts` what each was sampled for. `ValueError` for a clip that the
        reward cannot take (shape, type), or for another number of prompts than clips.
        """
        ...


Opinion: TypeAlias = dict[str, float] | str  # a clip's raw values by output, or why there are none


@dataclass(frozen=True)
class Clip:
    """A decoded clip, with what its pixels do not say."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    fps: float  # frames per second
    file: bytes | None = field(default=None, repr=False)  # the video that the frames were read from; None: resampled

    def mp4(self) -> bytes:
        """The clip as a file: the one it was read from, or else encoded now."""
        if self.file is not None:
            return self.file
        return encode_mp4(self.frames, Fraction(self.fps).limit_denominator(1000))


@runtime_checkable
class Judge(Protocol):
    """Scores clips in several dimensions at once, or needs their frame rate or file. Else what holds for `Reward`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the scores, at least one."""
        ...

    @property
    def digest(self) -> str:
        """As `Reward.digest`."""
        ...

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """Per clip one raw value of each output, or in words why there is none. `ValueError` as in `Reward.score`.

        `JudgeUnavailable` when none of the clips could be judged now and trying them one by one would not help.
        """
        ...


class JudgeUnavailable(Exception):
    """A judge that is late or out of reach: these clips stay without its scores, the others go on."""


class JudgeFailed(Exception):
    """A judge that does not answer any more, or is another one than at the start: scoring cannot go on."""


@dataclass(frozen=True)
class Single:
    """A `Reward` as a `Judge` of one output."""

    reward: Reward

    @property
    def outputs(self) -> tuple[str, ...]:
        """The reward's dimension."""
        return (self.reward.dimension,)

    @property
    def digest(self) -> str:
        """The reward's."""
        return self.reward.digest

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """See `Judge.judge`."""
        values = self.reward.score([clip.frames for clip in clips], prompts)
        return [{self.reward.dimension: value} for value in values]


def as_judge(scorer: Reward | Judge) -> Judge:
    """`scorer` itself, or a `Judge` that asks it."""
    return scorer if isinstance(scorer, Judge) else Single(scorer)
