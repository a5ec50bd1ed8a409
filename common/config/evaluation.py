"""``[evaluation]``: the held-out comparison."""

from __future__ import annotations

from pydantic import Field, model_validator

from common.config.reward import JudgeName
from common.config.section import Section


class SetMetricConfig(Section):
    """A metric over a set of clips."""

    kind: str = Field(min_length=1, description="a built-in kind, or your own class as package.module:Class")
    path: str = Field(default="", description="model folder or Hugging Face hub id")
    reference: str = Field(default="", description="folder of real clips, or a file of their features (.npz)")
    fps: float = Field(default=0.0, ge=0, description="frames per second at which clips are read; 0 = their own")


class EvaluationConfig(Section):
    """The held-out comparison of base and aligned model at the end of a run: same prompts, same seeds."""

    prompts: int = Field(
        default=96,
        ge=0,
        description="clips of each side; with fewer held-out prompts, several clips of a prompt; 0: no comparison",
    )
    clips: int = Field(default=12, ge=0, description="clip pairs shown in the report")
    metrics: dict[JudgeName, SetMetricConfig] = Field(default={})  # of `douga evaluate`

    @model_validator(mode="after")
    def _enough_for_an_interval(self) -> EvaluationConfig:
        if self.prompts == 1:
            raise ValueError("prompts = 1: a comparison needs 2 or more; 0 turns it off")
        return self
