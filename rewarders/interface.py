"""The interfaces of reward models: `Reward` (pixels to one score) and `Judge` (clip files to several scores); and
`DifferentiableReward`, which a `Reward` may be as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np

from common.data.video import encode_mp4
from common.errors import UserCodeError
from common.messages import Prompt

if TYPE_CHECKING:
    import torch


class Reward(Protocol):
    """Scores clips in one dimension. A score depends only on the clip and its prompt, not on the rest of the batch."""

    @property
    def dimension(self) -> str:
        """The name of the score, e.g. ``smoothness``; unique among the rewards of a run."""
        ...

    @property
    def digest(self) -> str:
        """Identifies weights and code path: equal digests give equal scores."""
        ...

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """Returns one raw value per clip; higher is better (AnimeReward: 0..100).

        `clips` are uint8 ``[F, H, W, 3]`` and `prompts` are what each clip was sampled for. Raises `ValueError` for a
        clip of an unsupported shape or dtype, and for unequal numbers of clips and prompts.
        """
        ...


JudgeResult: TypeAlias = dict[str, float] | str  # raw value by output, or the reason why the clip has none


@dataclass(frozen=True)
class Clip:
    """A decoded clip with its frame rate and, if it was not resampled, its file."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    fps: float  # frames per second
    file: bytes | None = field(default=None, repr=False)  # the video file if it shows exactly these frames, else None

    def mp4(self) -> bytes:
        """Returns the clip as a video file: the original one, or a new encoding of the frames."""
        if self.file is not None:
            return self.file
        return encode_mp4(self.frames, Fraction(self.fps).limit_denominator(1000))


@runtime_checkable
class Judge(Protocol):
    """Scores clips in several dimensions at once, or needs their frame rate or file. Otherwise like `Reward`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the scores; at least one."""
        ...

    @property
    def digest(self) -> str:
        """See `Reward.digest`."""
        ...

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """Returns per clip one raw value for each output, or a string that says why it has none.

        Raises `ValueError` as `Reward.score` does, and `JudgeUnavailableError` if no clip of the batch can be judged
        now and retrying them one by one would not help.
        """
        ...


@runtime_checkable
class DifferentiableReward(Protocol):
    """What a `Reward` also needs for algorithms that follow its gradient (`rewarders/gradient/reward.py`)."""

    def frame_scores(self, clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Returns a raw value of every frame, ``[n, F]``, with a gradient to `clips`; their mean is the clip's score.

        `clips` are float32 ``[n, F, 3, H, W]`` in 0..1, one per prompt. Raises `ValueError` for a clip of an
        unsupported shape.
        """
        ...


class JudgeUnavailableError(Exception):
    """A judge timed out or cannot be reached: this batch gets no scores from it, and scoring continues."""


class JudgeFailedError(Exception):
    """A judge is gone for good, or its digest has changed since the start: scoring cannot continue."""


class JudgeBrokenError(UserCodeError):
    """A judge's code fails for every clip."""


@dataclass(frozen=True)
class RewardAsJudge:
    """Adapts a `Reward` to the `Judge` interface, with one output."""

    reward: Reward

    @property
    def outputs(self) -> tuple[str, ...]:
        """The reward's dimension."""
        return (self.reward.dimension,)

    @property
    def digest(self) -> str:
        """The reward's digest."""
        return self.reward.digest

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`."""
        values = self.reward.score([clip.frames for clip in clips], prompts)
        if isinstance(values, str | Mapping | Set) or not hasattr(values, "__len__"):
            return values  # type: ignore[return-value]  # `checked_results` names it
        return [{self.reward.dimension: value} for value in values]


def as_judge(scorer: Reward | Judge) -> Judge:
    """Returns `scorer` itself if it is a `Judge`, else wraps it in `RewardAsJudge`."""
    return scorer if isinstance(scorer, Judge) else RewardAsJudge(scorer)
