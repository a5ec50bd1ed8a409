"""``[guard]``: probes that detect a policy which exploits its reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.config.reward import JudgeConfig, JudgeName
from common.config.section import Section


class GuardConfig(Section):
    """Guardrails: probe prompts sampled under the policy and the base model, watched for hacking of the reward."""

    prompts: int = Field(default=8, ge=0, description="probe prompts, one clip each; 0: no guardrails, else 2 or more")
    every: int = Field(default=5, ge=1, description="pushes between readings")
    judges: dict[JudgeName, JudgeConfig] = Field(default={})  # held out: never trained on; none: the oracle
    fall: float = Field(default=5.0, gt=0, description="points the judge may fall while the trained reward rises")
    motion_floor: float = Field(default=0.5, ge=0, le=1, description="least share of the base clips' motion; 0 never")
    drift: float = Field(default=1.0, gt=0, description="points by which the base clips' scores may change")
    patience: int = Field(default=2, ge=1, description="readings in a row that must show the same before an alarm")
    action: Literal["warn", "refresh", "pause"] = Field(
        default="warn", description="at an alarm: say so, also make the policy the reference, or save and stop (exit 3)"
    )

    @model_validator(mode="after")
    def _enough_for_an_interval(self) -> GuardConfig:
        if self.prompts == 1:
            raise ValueError("prompts = 1: an interval needs 2 or more; 0 switches the guardrails off")
        return self
