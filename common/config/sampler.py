"""``[sampler]`` and ``[collect]``: how candidates are generated, and for which candidate set."""

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
    """How the samplers generate candidates."""

    candidates: int = Field(default=4, ge=1, description="clips sampled per prompt; the algorithm keeps some of them")
    steps: Annotated[int, AfterValidator(_divides_1000)] = Field(
        default=10, ge=1, description="denoising steps per clip; must divide 1000"
    )
    guidance: float = Field(default=1.0, ge=1.0, description="classifier-free guidance scale; 1 turns guidance off")
    dynamic_guidance: bool = Field(
        default=False,
        description="vary the guidance scale from step to step, like use_dynamic_cfg in diffusers; the GAPO authors "
        "sample with it",
    )
    scheduler: Literal["dpm", "ddim"] = Field(
        default="dpm", description="CogVideoX DPM (stochastic) or DDIM (deterministic)"
    )
    micro_batch: int = Field(
        default=4, ge=1, description="candidates of one prompt denoised in one batch; fewer need less memory"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="from,to in t / T (1 = pure noise): guidance is applied in this range only"
    )
    cache_threshold: float = Field(
        default=0.0,
        ge=0,
        description="First Block Cache: skip the other blocks while the first block's residual changes by less than "
        "this fraction; 0 turns it off",
    )
    compile: bool = Field(
        default=False, description="compile the transformer blocks with torch.compile; takes minutes at startup"
    )
    offload: bool = Field(default=False, description="keep T5 and VAE in host memory while they are idle")
    vae_tiling: bool = Field(default=False, description="encode and decode in overlapping tiles; needs less memory")

    @model_validator(mode="after")
    def _interval(self) -> SamplerConfig:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval = {low:g},{high:g}: must satisfy 0 <= from < to <= 1")
        return self

    @model_validator(mode="after")
    def _something_to_vary(self) -> SamplerConfig:
        if self.dynamic_guidance and self.guidance == 1:
            raise ValueError("dynamic_guidance = true: needs guidance above 1")
        return self


class CollectConfig(Section):
    """What `douga collect` samples. Such a run has samplers and rewarders, but no learner."""

    prompts: int = Field(
        default=0, ge=0, description="collect candidates of this many training prompts instead of training; 0: train"
    )
    split: Literal["train", "heldout", "all"] = Field(
        default="train", description="prompts to collect: training prompts, held-out ones, or all rows of the file"
    )
    run: str = Field(default="", description="folder of the run whose weights sample; empty: the base model")
    version: int = Field(default=0, ge=0, description="weight version of that run")

    @property
    def seeds(self) -> str:
        """The purpose that seeds are drawn for: held-out clips have the seeds of a run's held-out comparison."""
        return "collect" if self.split == "train" else "eval"
