"""``[evaluation]``: the held-out comparison."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Section


class EvaluationConfig(Section):
    """The held-out comparison of base and aligned model at the end of a run: same prompts, same seeds."""

    prompts: int = Field(
        default=96, ge=2, description="clips of each side; with fewer held-out prompts, several clips of a prompt"
    )
    clips: int = Field(default=12, ge=0, description="clip pairs shown in the report")
