"""What makes a sampler faster or smaller than the plain loop. All of it is off by default (`sampler.*`).

| key | what it does | what a clip loses |
|---|---|---|
| `guidance_interval` | guidance in a part of the noise levels; elsewhere one caption is denoised, not two | measured |
| `cache_threshold` | the blocks after the first are skipped while its residual hardly changes | measured |
| `steps` | fewer denoising steps | measured |
| `compile` | the blocks are compiled once (`torch.compile`), for one shape each | rounding |
| `offload` | T5 and VAE wait in host memory while they are not used | nothing |
| `vae_tiling` | the VAE works in overlapping tiles, blended; on first frames too | seams, faintly |

Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models", is where the interval comes from; deviation: it is given in t / T, not in sigma. The cache is diffusers' First
Block Cache; what it decides, it decides for a whole micro-batch, which always runs whole (`actors/sampler.py`), so a
clip stays a function of (weights, seed). `python -m benchmarks.sampling` measures what each gives and costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from diffusers import FirstBlockCacheConfig

from common.config import SamplerConfig
from common.models.cogvideox import compile_blocks

Module = TypeVar("Module", bound=torch.nn.Module)


def apply_acceleration(transformer: Any, how: SamplerConfig) -> Any:
    """The transformer with what `how` asks for: the cache, compiled blocks."""
    if how.cache_threshold > 0:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=how.cache_threshold))
    if how.compile:
        compile_blocks(transformer)
    return transformer


def reset_cache(transformer: Any) -> None:
    """Start a clip: nothing is left in the cache of the one before."""
    if transformer.is_cache_enabled:
        transformer._reset_stateful_cache()


@contextmanager
def resident(module: Module, device: str, offload: bool) -> Iterator[Module]:
    """``with resident(vae, "cuda:0", offload) as vae:`` it is on the device within, and with `offload` only within."""
    if not offload:
        yield module
        return
    module.to(device)
    try:
        yield module
    finally:
        module.to("cpu")
