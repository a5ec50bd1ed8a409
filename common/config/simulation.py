"""``[simulation]``: pauses and sizes of a run without model work."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Section


class SimulationConfig(Section):
    """What takes the place of model work with `simulate`: pauses, and data of these sizes.

    A pause is log-normal: `tail` is the standard deviation of its logarithm. Its 99th percentile is
    exp(2.33 tail - tail^2 / 2) times the mean: 1 at tail 0, 2.8 at 0.5, 6.2 at 1.
    """

    sample_seconds: float = Field(default=0.05, ge=0, description="mean time to sample one candidate")
    score_seconds: float = Field(default=0.01, ge=0, description="mean time to score one clip")
    step_seconds: float = Field(default=0.1, ge=0, description="mean time of one optimizer step")
    load_seconds: float = Field(default=0.01, ge=0, description="mean time to swap in a weight version")
    tail: float = Field(default=0.5, ge=0, le=3, description="how heavy the tail of all times is; 0 is none")
    failure_rate: float = Field(
        default=0.0, ge=0, lt=1, description="share of groups given back, and of clips scored NaN"
    )
    latents_bytes: int = Field(default=100_000, ge=1, description="latents of one candidate")
    clip_bytes: int = Field(default=20_000, ge=1, description="one clip")
    embeds_bytes: int = Field(default=20_000, ge=1, description="conditioning of one prompt")
    weights_bytes: int = Field(default=1_000_000, ge=1, description="one weight version")
