"""Options that make sampling faster or save memory. All are off by default (`sampler.*`).

| key | what it does | cost in quality |
|---|---|---|
| `guidance_interval` | guidance only at some noise levels; elsewhere only one caption is denoised | measured |
| `cache_threshold` | skips the blocks after the first while the first one's residual hardly changes | measured |
| `steps` | fewer denoising steps | measured |
| `compile` | `torch.compile` of the blocks, once per shape | rounding |
| `offload` | T5 and VAE are in host memory while unused | none |
| `vae_tiling` | the VAE works on overlapping tiles, which are blended; on first frames too | faint seams |

The guidance interval is from Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and
Distribution Quality in Diffusion Models"; deviation: it is given in t / T, not in sigma. The cache is diffusers' First
Block Cache. It decides per micro-batch, and micro-batches always run complete (`actors/sampler.py`), so a clip remains
a function of (weights, seed). `python -m benchmarks.sampling` measures speed and quality of each option.
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


def apply_acceleration(transformer: Any, config: SamplerConfig) -> Any:
    """Enable the block cache and compile the blocks in place, if configured. Returns `transformer`."""
    if config.cache_threshold > 0:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=config.cache_threshold))
    if config.compile:
        compile_blocks(transformer)
    return transformer


def reset_cache(transformer: Any) -> None:
    """Clear the block cache. Call it before each clip."""
    if transformer.is_cache_enabled:
        transformer._reset_stateful_cache()


@contextmanager
def on_device(module: Module, device: str, offload: bool) -> Iterator[Module]:
    """``with on_device(vae, "cuda:0", offload) as vae:`` With `offload`, the module is on the device only inside."""
    if not offload:
        yield module
        return
    module.to(device)
    try:
        yield module
    finally:
        module.to("cpu")
