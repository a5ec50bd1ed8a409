"""``[model]``: which model is aligned, and the size of its clips."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section


class ModelConfig(Section):
    """Which image-to-video model is aligned."""

    path: str = Field(default="toon", description="'toon' (embedded) or a CogVideoX pipeline folder")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights and activations of all roles")
    device: str = Field(default="cpu", description="torch device of sampler, rewarders and learner, e.g. cpu, cuda:0")
    frames: int = Field(default=9, ge=1, description="frames per clip; 4k+1 for CogVideoX 1.0")
    height: int = Field(default=48, ge=8, description="pixels, a multiple of 8")
    width: int = Field(default=64, ge=8, description="pixels, a multiple of 8")
    fps: int = Field(default=8, ge=1, description="frames per second of the clips")
