"""Classifier-free guidance, for samplers and learner. Imports no torch.

v = v_empty + scale (v_text - v_empty)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common.config import SamplerConfig

if TYPE_CHECKING:
    from torch import Tensor


def guided(v: Tensor, scale: float) -> Tensor:
    """v with guidance, [B, ...], from `v` [2 B, ...]: predictions for the empty caption, then for the text."""
    empty, text = v.chunk(2)
    return empty + scale * (text - empty)


def scale_at(config: SamplerConfig, timestep: int, timesteps: int) -> float:
    """The guidance scale at `timestep`, 0 .. `timesteps` - 1. At 1 there is no guidance: v is v_text."""
    low, high = config.guidance_interval
    if config.guidance <= 1 or not low <= timestep / timesteps <= high:
        return 1.0
    return dynamic_scale(config.guidance, timestep, config.steps) if config.dynamic_guidance else config.guidance


def dynamic_scale(guidance: float, timestep: int, steps: int) -> float:
    """The guidance scale of one step with `sampler.dynamic_guidance`, in [1, 1 + guidance].

        1 + guidance (1 - cos(pi ((N - t) / N)^5)) / 2,    N denoising steps, t in 0 .. T-1

    This is ``use_dynamic_cfg`` of diffusers' CogVideoX pipelines and `DynamicCFG` (exponent 5) of CogVideoX's own code,
    with which the GAPO authors sample. Both compare the timestep t with the number of steps N, so the scale does not
    rise steadily: with 50 steps it jumps between 1 and 1 + guidance, and is near 1 in the last four.
    """
    return 1 + guidance * ((1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2)
