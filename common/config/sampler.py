"""``[sampler]``: how candidates are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from common.config.section import Section


def _divides_1000(value: int) -> int:
    if 1000 % value:  # the scheduler's integer division would skip the last timesteps
        divisors = [steps for steps in range(1, 1001) if 1000 % steps == 0]
        below = max(steps for steps in divisors if steps < value)
        near = " or ".join(str(steps) for steps in divisors[divisors.index(below) :][:2])
        raise ValueError(f"must divide the scheduler's 1000 training timesteps; nearest: {near}")
    return value


class SamplerConfig(Section):
    """How candidates are made."""

    candidates: int = Field(default=4, ge=2, description="N, candidates per prompt: best and worst make the pair")
    steps: Annotated[int, AfterValidator(_divides_1000)] = Field(default=10, ge=1, description="denoising steps")
    guidance: float = Field(default=1.0, ge=1.0, description="classifier-free guidance scale; 1 switches it off")
    scheduler: Literal["dpm", "ddim"] = Field(default="dpm", description="CogVideoX DPM (stochastic) or DDIM")
    micro_batch: int = Field(default=4, ge=1, description="candidates denoised together")
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="share of the noise levels, t / T, in which there is guidance"
    )
    cache_threshold: float = Field(
        default=0.0, ge=0, description="blocks are skipped while the first one's residual changes by less; 0 never"
    )
    compile: bool = Field(default=False, description="compile the transformer's blocks; minutes at the start")
    offload: bool = Field(default=False, description="T5 and VAE wait in host memory while they are not used")
    vae_tiling: bool = Field(default=False, description="the VAE decodes in overlapping tiles: less memory")

    @model_validator(mode="after")
    def _interval(self) -> SamplerConfig:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval = {low:g},{high:g}: 0 <= from < to <= 1 is needed")
        return self
