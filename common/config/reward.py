"""``[reward]``: how candidates are scored, and what of it counts."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from common.config.section import Section

DIMENSIONS = ("smoothness", "motion", "appeal", "text", "image", "character")
PRESETS: dict[str, dict[str, float]] = {"equal": dict.fromkeys(DIMENSIONS, 1.0)}  # weights of the six by name


class RewardWeights(Section):
    """Weights of the six AnimeReward dimensions in the mean reward; 0 leaves a dimension out."""

    smoothness: float = Field(default=1.0, ge=0, description="no flicker, no jitter")
    motion: float = Field(default=1.0, ge=0, description="how much moves")
    appeal: float = Field(default=1.0, ge=0, description="how well it is drawn")
    text: float = Field(default=1.0, ge=0, description="shows what the caption says")
    image: float = Field(default=1.0, ge=0, description="keeps to the first frame's scene")
    character: float = Field(default=1.0, ge=0, description="stays the same character")


class JudgeConfig(Section):
    """A judge, and what it is shown. Where 0 or nothing stands, its kind decides."""

    kind: str = Field(min_length=1, description="a built-in kind, or a class of yours as package.module:Class")
    path: str = Field(default="", description="model folder or hub id")
    url: str = Field(default="", description="of kind remote: http(s)://HOST:PORT; of several servers a,b,c")
    token_file: str = Field(default="", description="of kind remote: a file that holds the servers' bearer token")
    timeout: float = Field(default=60.0, gt=0, description="of kind remote: seconds that one call may take")
    retries: int = Field(default=3, ge=0, description="of kind remote: further tries of a call that failed")
    fps: float = Field(default=0.0, ge=0, description="frames per second that it is shown")
    frames: int = Field(default=0, ge=0, description="frames that it is shown, evenly over the clip")
    size: tuple[int, ...] = Field(default=(), description="height,width in pixels that it is shown")
    low: float = Field(default=0.0, description="the raw value that becomes 0")
    high: float = Field(default=0.0, description="the raw value that becomes 100")
    frame_weights: Literal["uniform", "central"] = Field(
        default="uniform", description="of image rewards: frames count alike, or as InstructVideo's exp(-distance)"
    )

    @model_validator(mode="after")
    def _fits(self) -> JudgeConfig:
        if self.size and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size = {','.join(map(str, self.size))}: height,width in pixels are needed")
        if (self.low, self.high) != (0, 0) and not self.low < self.high:
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}: low must be below high")
        return self

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses in `url`, without a slash at the end."""
        return tuple(one.strip().rstrip("/") for one in self.url.split(",") if one.strip())


class RewardJudgeConfig(JudgeConfig):
    """A judge beside the six AnimeReward heads, and what its opinion counts."""

    weight: float = Field(default=1.0, ge=0, description="in the mean reward; 0: scores are kept and do not count")
    outputs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="weight of an output within the judge; with none given all count alike"
    )

    @model_validator(mode="after")
    def _some_output(self) -> RewardJudgeConfig:
        if self.outputs and not any(self.outputs.values()):
            raise ValueError("outputs: at least one weight must be above 0; the judge's own weight = 0 leaves it out")
        return self


def _judge_name(name: str) -> str:
    taken = (*DIMENSIONS, "all", "global")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in taken:
        raise ValueError(f"a judge's name is letters, digits and _, and none of {', '.join(taken)}")
    return name


JudgeName = Annotated[str, AfterValidator(_judge_name)]


class RewardConfig(Section):
    """How candidates are scored, and what of it counts (`common/feedback.py`)."""

    path: str = Field(default="toon", description="'toon' (embedded heads), a folder of reward heads, or empty: none")
    preset: str = Field(default="", description=f"weights by name, in place of reward.weights: {', '.join(PRESETS)}")
    weights: RewardWeights = RewardWeights()
    judges: dict[JudgeName, RewardJudgeConfig] = Field(default={})
    feedback: str = Field(
        default="all",
        description="what makes the pairs: all (the weighted mean), global (the plain mean of all that is scored), "
        "or one dimension, judge or judge's output",
    )
    batch: int = Field(default=16, ge=1, description="clips scored together, of any prompts")
    batch_seconds: float = Field(
        default=0.0, ge=0, description="cluster mode: how long a batch that is not full waits for more clips"
    )
    normaliser: Literal["fixed", "quantile"] = Field(
        default="fixed", description="raw score to [0, 1]: x/100 or running rank"
    )

    @model_validator(mode="after")
    def _one_preset(self) -> RewardConfig:
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"preset = {self.preset!r}: allowed are {', '.join(PRESETS)}")
        if self.preset and self.weights != RewardWeights():
            raise ValueError(f"preset = {self.preset!r}, and weights: give one of them")
        return self

    @model_validator(mode="after")
    def _something_counts(self) -> RewardConfig:
        if not self.path and not self.judges:
            raise ValueError("path is empty and there are no judges: nothing scores the clips")
        if not any([*self.head_weights.values(), *(judge.weight for judge in self.judges.values())]):
            raise ValueError("weights: at least one weight must be above 0")
        names = (*(DIMENSIONS if self.path else ()), *self.judges)
        if self.feedback not in ("all", "global", *names) and self.feedback.partition(".")[0] not in self.judges:
            raise ValueError(f"feedback = {self.feedback!r}: allowed are all, global, {', '.join(names)}")
        return self

    @property
    def head_weights(self) -> dict[str, float]:
        """Weight of each AnimeReward dimension: the preset's, or those in `weights`; none where there are no heads."""
        if not self.path:
            return {}
        return dict(PRESETS[self.preset]) if self.preset else self.weights.model_dump()
