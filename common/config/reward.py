"""``[reward]``: how candidates are scored, and what of it counts."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.config.section import Section

DIMENSIONS = ("smoothness", "motion", "appeal", "text", "image", "character")
# The weightings of Table 5 in "Aligning Anime Video Generation with Human Feedback", in the table's order.
PRESETS: dict[str, dict[str, float]] = {  # name -> dimension -> weight
    name: dict(zip(DIMENSIONS, weights, strict=True))
    for name, weights in {
        "no_dynamics": (0, 0, 1, 1, 1, 1),
        "more_motion": (3, 5, 3, 3, 3, 3),
        "more_appeal": (3, 3, 6, 4, 4, 4),
        "equal": (1, 1, 1, 1, 1, 1),
    }.items()
}


class RewardWeights(Section):
    """Weights of the six AnimeReward dimensions in the mean reward; 0 leaves a dimension out. They override
    `reward.preset`."""

    smoothness: float = Field(default=1.0, ge=0, description="weight of smooth motion: no flicker, no jitter")
    motion: float = Field(default=1.0, ge=0, description="weight of the amount of motion")
    appeal: float = Field(default=1.0, ge=0, description="weight of visual appeal: how well the clip is drawn")
    text: float = Field(default=1.0, ge=0, description="weight of consistency with the caption")
    image: float = Field(default=1.0, ge=0, description="weight of consistency with the first frame")
    character: float = Field(default=1.0, ge=0, description="weight of keeping the character the same")


class JudgeConfig(Section):
    """A judge and what it is shown. 0 or empty means the default of its `kind`."""

    kind: str = Field(min_length=1, description="a built-in kind, or your own class as package.module:Class")
    path: str = Field(
        default="", description="model folder or Hugging Face hub id; kind remote: the judge's name on the server"
    )
    url: str = Field(default="", description="kind remote: http(s)://HOST:PORT; several servers as a,b,c")
    token_file: str = Field(default="", description="kind remote: file with the servers' bearer token")
    proxy: str = Field(
        default="", description="kind remote: http://HOST:PORT of a proxy; empty: none, also if HTTP_PROXY is set"
    )
    timeout: float = Field(default=60.0, gt=0, description="kind remote: timeout per call in seconds")
    retries: int = Field(default=3, ge=0, description="kind remote: retries of a failed call")
    fps: float = Field(
        default=0.0, ge=0, description="frames per second that the judge is shown; 0 = default of the kind"
    )
    frames: int = Field(
        default=0, ge=0, description="frames that the judge is shown, evenly spread; 0 = default of the kind"
    )
    size: tuple[int, ...] = Field(
        default=(), description="height,width in pixels that the judge is shown; empty = default of the kind"
    )
    low: float = Field(default=0.0, description="raw score that maps to 0; low = high = 0: the kind's own range")
    high: float = Field(default=0.0, description="raw score that maps to 100")
    frame_weights: Literal["uniform", "central"] = Field(
        default="uniform",
        description="image rewards: weight frames equally, or by exp(-distance to the middle frame) as InstructVideo",
    )
    options: dict[str, Any] = Field(default={}, description="option of your own class, which reads `judge.options`")

    @field_validator("options")
    @classmethod
    def _plain_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r}: an option's name starts with a letter and has only letters, digits and _")
            if not _is_plain(value):
                raise ValueError(f"{name} = {value!r}: must be a text, a finite number, true, false, or a list of them")
        return options

    @model_validator(mode="after")
    def _fits(self) -> JudgeConfig:
        if self.size and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size = {','.join(map(str, self.size))}: must be height,width in pixels")
        if (self.low, self.high) != (0, 0) and not self.low < self.high:
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}: low must be below high")
        return self

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses in `url`, without trailing slashes."""
        return tuple(one.strip().rstrip("/") for one in self.url.split(",") if one.strip())


class RewardJudgeConfig(JudgeConfig):
    """A judge that scores training clips, and its weight in the reward."""

    weight: float = Field(
        default=1.0, ge=0, description="weight in the mean reward; 0 records the scores without using them"
    )
    outputs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="weight of an output within the judge; unlisted outputs do not count; none listed: equal weights",
    )

    @model_validator(mode="after")
    def _some_output(self) -> RewardJudgeConfig:
        if self.outputs and not any(self.outputs.values()):
            raise ValueError("outputs: at least one weight must be above 0; the judge's own weight = 0 leaves it out")
        return self


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(one) for one in value)
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _judge_name(name: str) -> str:
    taken = (*DIMENSIONS, "all", "global")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in taken:
        raise ValueError(
            f"a judge's name starts with a letter, has only letters, digits and _, and is not one of {', '.join(taken)}"
        )
    return name


JudgeName = Annotated[str, AfterValidator(_judge_name)]


class RewardConfig(Section):
    """How clips are scored, and which scores make up the reward (`common/reward_composition.py`)."""

    path: str = Field(
        default="toon",
        description="'toon' (embedded heads), a folder of reward heads, or empty for no heads; without judges as well, "
        "only pairs can be trained on, and people compare the held-out clips",
    )
    preset: str = Field(default="equal", description=f"weights that reward.weights does not set: {', '.join(PRESETS)}")
    weights: RewardWeights = RewardWeights()
    judges: dict[JudgeName, RewardJudgeConfig] = Field(default={})
    feedback: str = Field(
        default="all",
        description="scores that make the pairs: all (weighted mean), global (unweighted mean of every score), or "
        "the name of one dimension, judge or judge output",
    )
    batch: int = Field(default=16, ge=1, description="clips scored in one batch; they may belong to different prompts")
    batch_seconds: float = Field(
        default=0.0, ge=0, description="cluster mode: seconds that a partial batch waits for more clips"
    )
    judge_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="seconds that a judge may take to open, and for one batch; then the run ends (exit code 3)",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        """Gives `weights` the preset's value for each dimension that it does not set."""
        if not isinstance(data, dict):
            return data
        preset, weights = data.get("preset", "equal"), data.get("weights", {})
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"preset = {preset!r}: must be one of {', '.join(PRESETS)}")
        if isinstance(weights, RewardWeights):
            weights = weights.model_dump(exclude_unset=True)
        return data | {"weights": PRESETS[preset] | weights} if isinstance(weights, dict) else data

    @model_validator(mode="after")
    def _something_counts(self) -> RewardConfig:
        if not self.empty and not any([*self.head_weights.values(), *(judge.weight for judge in self.judges.values())]):
            raise ValueError("weights: at least one weight must be above 0")
        names = (*(DIMENSIONS if self.path else ()), *self.judges)
        if self.feedback not in ("all", "global", *names) and self.feedback.partition(".")[0] not in self.judges:
            raise ValueError(f"feedback = {self.feedback!r}: must be one of all, global, {', '.join(names)}")
        return self

    @property
    def empty(self) -> bool:
        """Whether nothing scores clips: no heads, no judges. Only a run on `pairs` may go without."""
        return not self.path and not self.judges

    @property
    def head_weights(self) -> dict[str, float]:
        """Weight of each AnimeReward dimension; empty if `path` is empty."""
        return self.weights.model_dump() if self.path else {}
