"""``[simulation]``: pauses and sizes of a run without model work."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Section


class SimulationConfig(Section):
    """Simulated work (`simulate = true`): the durations and data sizes that replace the model.

    Durations are log-normal; `tail` is the standard deviation of their logarithm. The 99th percentile is
    exp(2.33 tail - tail^2 / 2) times the mean: 1 at tail 0, 2.8 at 0.5, 6.2 at 1.
    """

    sample_seconds: float = Field(default=0.05, ge=0, description="mean seconds to sample one candidate")
    score_seconds: float = Field(default=0.01, ge=0, description="mean seconds to score one clip")
    step_seconds: float = Field(default=0.1, ge=0, description="mean seconds per optimizer step")
    load_seconds: float = Field(default=0.01, ge=0, description="mean seconds to load a new weight version")
    tail: float = Field(
        default=0.5,
        ge=0,
        le=3,
        description="standard deviation of the logarithm of every duration; 0 makes durations constant",
    )
    failure_rate: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a sampler gives a lease back, and that a clip is scored NaN",
    )
    latents_bytes: int = Field(default=100_000, ge=1, description="size of one candidate's latents in bytes")
    clip_bytes: int = Field(default=20_000, ge=1, description="size of one clip in bytes")
    embeds_bytes: int = Field(default=20_000, ge=1, description="size of one prompt's conditioning in bytes")
    weights_bytes: int = Field(default=1_000_000, ge=1, description="size of one weight version in bytes")
