"""``[learner]``: loss, optimizer, checkpoints, reference model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.config.section import Section

ALL = ("*",)  # of `learner.trainable`
LrSchedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr", "inverse_sqrt"]
OVER_ALL_STEPS = ("linear", "cosine", "cosine_with_min_lr")  # schedules that end at the run's last step


class LoraConfig(Section):
    """Low-rank adapters on the transformer's attention."""

    rank: int = Field(default=16, ge=1, description="rank of an adapter")
    alpha: float = Field(default=16.0, gt=0, description="an adapter's output is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        description="modules that get an adapter; on the command line as a,b,c",
    )


class LearnerConfig(Section):
    """Training: optimizer, batches, weight sync, where the reference is kept, memory. The loss is in `[algorithm]`."""

    train: Literal["full", "lora"] = Field(
        default="full", description="train the whole transformer, or LoRA adapters only"
    )
    trainable: tuple[str, ...] = Field(
        default=ALL,
        min_length=1,
        description="full training: patterns of the parameters to train, e.g. transformer_blocks.* or *.attn1.*; the "
        "others stay frozen",
    )
    lora: LoraConfig = LoraConfig()
    lr: float = Field(default=5e-6, ge=0, description="learning rate of AdamW, the highest of its schedule")
    lr_schedule: LrSchedule = Field(
        default="constant",
        description="how the learning rate changes over the steps; the schedules of transformers of the same names",
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="optimizer steps over which the learning rate rises linearly, from 0"
    )
    warmup_ratio: float = Field(
        default=0.0, ge=0, lt=1, description="the same as a share of steps, rounded up; instead of warmup_steps"
    )
    min_lr_ratio: float = Field(
        default=0.0, ge=0, lt=1, description="cosine_with_min_lr: share of lr at which the schedule ends"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay rate of the first moment")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay rate of the second moment")
    adam_epsilon: float = Field(
        default=1e-8, gt=0, description="AdamW's epsilon, added to the root of the second moment"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="maximum gradient norm")
    batch_size: int = Field(
        default=8, ge=1, description="prompt groups (GAPO, DPO: pairs) per optimizer step, over all ranks"
    )
    micro_batch: int = Field(default=8, ge=1, description="prompt groups per forward pass on one rank")
    steps_per_push: int = Field(
        default=1, ge=1, description="optimizer steps between weight syncs (published versions)"
    )
    caption_drop: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability that a pair is trained with the empty caption; 0.1 in the GAPO authors' code",
    )
    image_drop: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability that a pair is trained without its first frame; 0.05 in the GAPO authors' code",
    )
    image_noise: bool = Field(
        default=False,
        description="add noise of scale exp(N(-3, 0.5)) to each clip's first-frame latent before the VAE's scaling "
        "factor; on in the GAPO authors' code",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw",
        description="optimizer moments per parameter: 8 bytes (adamw) or 2 bytes (adamw_8bit, needs bitsandbytes)",
    )
    offload_optimizer: bool = Field(
        default=False, description="keep and update float32 master weights and moments in host memory"
    )
    zero_stage: int = Field(default=0, ge=0, le=3, description="DeepSpeed ZeRO stage; with 0 and one rank, plain torch")
    reference: Literal["whole", "sharded", "host"] = Field(
        default="whole",
        description="full training: a frozen copy on every rank, sharded over the ranks, or in host memory",
    )
    gradient_checkpointing: Literal["off", "selective", "full"] = Field(
        default="off", description="activations recomputed in the backward pass: none, all but attention's, or all"
    )
    compile: bool = Field(
        default=False, description="compile the transformer blocks with torch.compile; takes minutes at startup"
    )
    checkpoint_every: int = Field(
        default=10, ge=1, description="optimizer steps between checkpoints; a multiple of steps_per_push"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints to keep; older ones are deleted")

    @model_validator(mode="after")
    def _checkpoints_at_pushes(self) -> LearnerConfig:
        # Between weight syncs the samplers hold older weights than the learner: only a synced step can be resumed.
        if self.checkpoint_every % self.steps_per_push:
            raise ValueError(
                f"checkpoint_every = {self.checkpoint_every} must be a multiple of steps_per_push = "
                f"{self.steps_per_push}"
            )
        return self

    @property
    def rate_depends_on_steps(self) -> bool:
        """Whether the number of steps of the run changes the learning rate of its steps."""
        return self.lr_schedule in OVER_ALL_STEPS or self.warmup_ratio > 0

    @model_validator(mode="after")
    def _schedule_has_its_keys(self) -> LearnerConfig:
        warmup = next((key for key in ("warmup_steps", "warmup_ratio") if getattr(self, key)), None)
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_ratio = {self.warmup_ratio:g}: warmup_steps is set as well; remove one of the two"
            )
        if self.lr_schedule == "constant" and warmup:
            raise ValueError(
                f"{warmup} = {getattr(self, warmup):g}: lr_schedule = 'constant' has no warm-up; "
                "use 'constant_with_warmup' or another schedule"
            )
        if (self.lr_schedule == "cosine_with_min_lr") != bool(self.min_lr_ratio):
            raise ValueError(
                f"min_lr_ratio = {self.min_lr_ratio:g}: above 0 with lr_schedule = 'cosine_with_min_lr', "
                f"else 0; it is {self.lr_schedule!r}"
            )
        return self

    @model_validator(mode="after")
    def _adapters_or_a_choice(self) -> LearnerConfig:
        if self.train == "lora" and self.trainable != ALL:
            raise ValueError(
                f"trainable = {','.join(self.trainable)}: with train = 'lora' only adapters are trained; "
                "set lora.targets instead"
            )
        return self

    @model_validator(mode="after")
    def _reference_has_a_place(self) -> LearnerConfig:
        if self.reference != "whole" and self.train == "lora":
            raise ValueError(
                f"reference = {self.reference!r}: with train = 'lora' the reference is an adapter; use 'whole'"
            )
        if self.reference == "sharded" and not self.zero_stage:
            raise ValueError("reference = 'sharded': needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _recomputed_as_it_was(self) -> LearnerConfig:
        # Stage 3 gathers weights inside a block, and gathers other ones in the backward pass than in the forward pass.
        if self.gradient_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError(
                "gradient_checkpointing = 'selective': needs zero_stage 0, 1 or 2; 'off' and 'full' work with any"
            )
        return self
