"""``[guardrails]``: probes that detect a policy which exploits its reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.config.reward import JudgeConfig, JudgeName
from common.config.section import Section


class GuardrailsConfig(Section):
    """Guardrails against reward hacking: fixed probe prompts, sampled with the policy and with the base model."""

    prompts: int = Field(
        default=8, ge=0, description="probe prompts, one clip each: 2 or more; 0 turns the guardrails off"
    )
    every_pushes: int = Field(default=5, ge=1, description="weight syncs between probe readings")
    judges: dict[JudgeName, JudgeConfig] = Field(default={})  # held out: never trained on; empty: the oracle
    max_judge_drop: float = Field(
        default=5.0, gt=0, description="rule judge: points the held-out judge may fall while the trained reward rises"
    )
    motion_floor: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="rule motion: minimum share of the base clips' motion; 0 turns the rule off",
    )
    max_score_drift: float = Field(
        default=1.0, gt=0, description="rule scorer: points by which the scores of the base clips may change"
    )
    patience: int = Field(
        default=2, ge=1, description="consecutive readings that must break the same rule before an alarm"
    )
    action: Literal["warn", "refresh", "pause"] = Field(
        default="warn",
        description="on an alarm: only warn, also refresh the reference (not on a scorer alarm), or save and stop "
        "(exit code 3)",
    )

    @model_validator(mode="after")
    def _enough_for_an_interval(self) -> GuardrailsConfig:
        if self.prompts == 1:
            raise ValueError("prompts = 1: a confidence interval needs 2 or more; 0 turns the guardrails off")
        return self
