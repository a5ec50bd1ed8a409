"""``[model]``: which model is aligned, and the size of its clips."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section


class ModelConfig(Section):
    """The image-to-video model to align."""

    path: str = Field(
        default="toon",
        description="'toon' (the embedded toy model), a CogVideoX pipeline folder, or a hub id in the local cache",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="dtype of weights and activations in every role"
    )
    attention: Literal["full", "sparse_causal"] = Field(
        default="full",
        description="full, as CogVideoX was pretrained; or HuViDPO's: a frame sees the caption, the first and the "
        "previous frame",
    )
    device: str = Field(
        default="cpu", description="torch device of samplers, rewarders and learner, e.g. cpu or cuda:0"
    )
    frames: int = Field(default=9, ge=1, description="frames per clip; CogVideoX needs 8k+1")
    height: int = Field(default=48, ge=8, description="clip height in pixels; published models need a multiple of 16")
    width: int = Field(default=64, ge=8, description="clip width in pixels; published models need a multiple of 16")
    fps: int = Field(default=8, ge=1, description="frame rate of the clips, frames per second")
