"""``[learner]``: loss, optimizer, checkpoints, reference model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.config.section import Section


class LoraConfig(Section):
    """Low-rank adapters on the transformer's attention."""

    rank: int = Field(default=16, ge=1, description="inner width of an adapter")
    alpha: float = Field(default=16.0, gt=0, description="scale = alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"), description="modules that get an adapter; a flag takes a,b,c"
    )


class LearnerConfig(Section):
    """The optimizer's side: loss, step sizes, pushes, the reference."""

    loss: Literal["gapo", "dpo", "sft"] = Field(
        default="gapo", description="gap-weighted DPO, plain DPO, or winners only"
    )
    train: Literal["full", "lora"] = Field(default="full", description="all transformer blocks, or adapters only")
    lora: LoraConfig = LoraConfig()
    alpha: float = Field(
        default=2.0, ge=1.0, description="base of the gap gain alpha^Rw - alpha^Rl; 1 gives no gradient"
    )
    beta: float = Field(default=5000.0, gt=0, description="DPO temperature, half-beta convention, mean v error")
    lr: float = Field(default=5e-6, ge=0, description="learning rate of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    clip_norm: float = Field(default=1.0, gt=0, description="gradient norm bound")
    warmup_steps: int = Field(default=0, ge=0, description="linear learning-rate warm-up, optimizer steps")
    pairs_per_step: int = Field(default=8, ge=1, description="pairs in one optimizer step, over all ranks")
    micro_batch: int = Field(default=8, ge=1, description="pairs in one forward pass of one rank")
    steps_per_push: int = Field(default=1, ge=1, description="P: optimizer steps between published versions")
    refresh_every: int = Field(default=0, ge=0, description="K: optimizer steps between reference refreshes; 0 never")
    normalise_gap: bool = Field(default=False, description="divide gaps by their batch mean (not in the papers)")
    caption_drop: float = Field(default=0.0, ge=0, le=1, description="share of pairs trained on the empty caption")
    image_drop: float = Field(default=0.0, ge=0, le=1, description="share of pairs trained without first frame")
    image_noise: bool = Field(
        default=False, description="noise exp(N(-3, 0.5)) on the first-frame latent (a deviation)"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="AdamW with moments of 8 bytes a parameter, or of 2"
    )
    offload_optimizer: bool = Field(
        default=False, description="master weights and moments lie in host memory and are updated there"
    )
    zero_stage: int = Field(default=0, ge=0, le=3, description="DeepSpeed ZeRO stage; 0 of one rank: torch alone")
    reference: Literal["whole", "sharded", "host"] = Field(
        default="whole", description="full training: the frozen copy on every rank, in shares, or in host memory"
    )
    gradient_checkpointing: Literal["off", "selective", "full"] = Field(
        default="off", description="activations computed again in the backward pass: all but attention's, or all"
    )
    compile: bool = Field(default=False, description="compile the transformer's blocks; minutes at the start")
    checkpoint_every: int = Field(default=10, ge=1, description="optimizer steps between checkpoints; a multiple of P")
    keep_checkpoints: int = Field(default=2, ge=1, description="older ones are deleted")

    @model_validator(mode="after")
    def _checkpoints_at_pushes(self) -> LearnerConfig:
        # Between two pushes the samplers hold older weights than the learner: only pushed steps can be resumed.
        if self.checkpoint_every % self.steps_per_push:
            raise ValueError(
                f"checkpoint_every = {self.checkpoint_every} must be a multiple of steps_per_push = "
                f"{self.steps_per_push}"
            )
        return self

    @model_validator(mode="after")
    def _reference_has_a_place(self) -> LearnerConfig:
        if self.reference != "whole" and self.train == "lora":
            raise ValueError(f"reference = {self.reference!r}: with train = 'lora' it is an adapter; only 'whole'")
        if self.reference == "sharded" and not self.zero_stage:
            raise ValueError("reference = 'sharded': needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _recomputed_as_it_was(self) -> LearnerConfig:
        # Stage 3 gathers weights within a block, other ones in the backward pass than in the forward one.
        if self.gradient_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError("gradient_checkpointing = 'selective': needs zero_stage 0, 1 or 2; 'off' and 'full' any")
        return self
