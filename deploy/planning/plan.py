"""Estimates memory (`deploy/planning/memory.py`), time and disk of a run from its config. No torch.

Time is FLOPs / (peak of the GPU x MFU). MFU is an assumption (`--mfu`), not a measurement. Model loading, weight syncs,
scoring, the savings of `cache_threshold` and the transfers of offloaded weights are not included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from common.config import RunConfig, open_algorithm
from common.errors import ConfigError
from common.exchange.storage.group_blobs import SHOWN
from deploy.planning.memory import (
    FLOAT32,
    GIGA,
    Gpu,
    Need,
    clips_of_a_pass,
    has_reference,
    has_rollouts,
    kept_clips,
    needs,
    number_bytes,
    ranks_of,
    share_of,
)
from deploy.planning.model_sizes import ModelSizes

CLIP_BITS_PER_PIXEL = 0.5  # assumed for H.264
TIMESTEPS = 1000  # T: training timesteps of the models' schedulers


@dataclass(frozen=True)
class Pace:
    """Seconds of work at the assumed MFU."""

    clip: float  # seconds per candidate on one sampler
    step: float  # seconds per optimizer step
    samplers: int  # configured number
    samplers_needed: int | None  # for the learner not to wait; None in serial mode, where roles take turns

    def total(self, steps: int, clips_per_step: int) -> float:
        """Seconds for `steps` steps: the slower of sampling and training, or their sum in serial mode."""
        sampling = clips_per_step * self.clip / self.samplers
        return steps * (sampling + self.step if self.samplers_needed is None else max(sampling, self.step))


@dataclass(frozen=True)
class Disk:
    """Bytes in the run folder, and bytes sent through the hub."""

    blobs: int
    checkpoints: int
    versions: int
    push: int  # of a version, which a node of samplers downloads if a difference does not do
    group: int  # all candidates of a prompt and its conditioning
    clip: int  # one mp4


@dataclass(frozen=True)
class Plan:
    """Result of `plan`."""

    config: RunConfig
    sizes: ModelSizes
    mfu: float
    shape: tuple[int, int, int, int]  # (F, C, h, w)
    tokens: int
    needs: tuple[Need, ...]
    pace: Pace
    disk: Disk


def plan(config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float) -> Plan:
    """Returns the needs of a run on `gpus` (role -> kind) with `mfu` in (0, 1].

    Raises `ConfigError`, in one line that names the keys to change, if it does not fit into memory or on disk.
    """
    made = draft(config, sizes, gpus, mfu)
    for need in made.needs:
        if need.total > need.budget:
            raise ConfigError(_refusal(made, need, gpus))
    _check_disk(made)
    return made


def draft(config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float) -> Plan:
    """As `plan`, but also returns plans that do not fit."""
    _check(config, mfu)
    size = config.model
    shape = sizes.latent_shape(size.frames, size.height, size.width)
    tokens = sizes.tokens(shape)
    pace = _pace(config, sizes, shape, gpus, mfu)
    held = needs(config, sizes, gpus, tokens)
    return Plan(config, sizes, mfu, shape, tokens, held, pace, disk_of(config, sizes, shape))


def _check(config: RunConfig, mfu: float) -> None:
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu}: above 0 and at most 1")
    if config.model.device == "cpu":
        raise ConfigError("model.device = 'cpu': douga plan computes GPU memory; set model.device = \"cuda:0\"")
    if config.simulate:
        raise ConfigError("simulate = true: there are no models to plan for")
    ranks = ranks_of(config)
    if config.learner.batch_size % ranks:
        raise ConfigError(f"learner.batch_size = {config.learner.batch_size}: must be divisible by {ranks} ranks")


# Time.


def _pace(
    config: RunConfig, sizes: ModelSizes, shape: tuple[int, int, int, int], gpus: Mapping[str, Gpu], mfu: float
) -> Pace:
    speed = {role: gpu.teraflops * 1e12 * mfu * min(1.0, share_of(role, config)) for role, gpu in gpus.items()}
    attended = sizes.attended(shape, config.model.attention)
    matrices, attention = sizes.forward_flops(sizes.tokens(shape), attended)
    calls = config.sampler.steps + guided_steps(config)
    clip = (calls * (matrices + attention) + sizes.decode_flops(shape)) / speed["sampler"]
    ranks, rules = ranks_of(config), config.learner
    forwards = (1 + has_reference(config)) * (matrices + attention)
    again = {"off": 0.0, "selective": matrices, "full": matrices + attention}[rules.gradient_checkpointing]
    backward = (1 if rules.train == "lora" else 2) * matrices + 2 * attention
    algorithm, clips = open_algorithm(config.algorithm), clips_of_a_pass(config) * rules.batch_size / ranks
    step = clips * algorithm.gradient_passes * (forwards + again + backward) / speed["learner"]
    if has_rollouts(config):
        chain = algorithm.rollout_share * calls * (matrices + attention) + 3 * sizes.decode_flops(shape)
        step += kept_clips(config) * rules.batch_size / ranks * chain / speed["learner"]
    samplers = config.cluster.sampler.count if config.mode == "cluster" else 1
    needed = math.ceil(clips_per_step(config) * clip / step) if config.mode == "cluster" else None
    return Pace(clip, step, samplers, needed)


def guided_steps(config: RunConfig) -> int:
    """Denoising steps with guidance (two forward passes each). Steps: t + 1 = T / steps, 2 T / steps ... T."""
    how, t = config.sampler, TIMESTEPS
    if how.guidance == 1:
        return 0
    low, high = how.guidance_interval
    return sum(low <= (t // how.steps * place - 1) / t <= high for place in range(1, how.steps + 1))


def clips_per_step(config: RunConfig) -> int:
    """Candidates per optimizer step if no group is tied; 0 if the clips exist before the run."""
    if config.offline:
        return 0
    return config.learner.batch_size * config.sampler.candidates


# Disk.


def disk_of(config: RunConfig, sizes: ModelSizes, shape: tuple[int, int, int, int]) -> Disk:
    """The disk of a run whose latents have `shape` (F, C, h, w)."""
    rules, b = config.learner, number_bytes(config)
    whole = sizes.transformer_parameters
    trained = sizes.trained_parameters(rules)
    policy = trained if rules.train == "lora" else whole  # a version of full training has the frozen parameters too
    optimizer = 3 * FLOAT32 * trained if b == 2 or rules.zero_stage else 2 * FLOAT32 * trained
    checkpoint = (1 + has_reference(config)) * b * policy + optimizer
    versions = min(config.exchange.max_lag + 2, config.steps // rules.steps_per_push)
    group, pair, clip = _group_bytes(config, sizes, shape)
    all_pairs = config.steps * rules.batch_size
    until_freed = (rules.keep_checkpoints + 1) * rules.checkpoint_every * rules.batch_size
    waiting = (config.exchange.max_lag + 1) * config.groups_per_push
    running = min(config.exchange.pipeline_depth, all_pairs)
    return Disk(
        blobs=running * group
        + min(until_freed + waiting, all_pairs) * pair
        + min(SHOWN, all_pairs) * kept_clips(config) * clip,
        checkpoints=checkpoint * (rules.keep_checkpoints + 1),  # one more while it is written
        versions=(1 + versions) * b * policy,
        push=b * policy,
        group=group,
        clip=clip,
    )


def _group_bytes(config: RunConfig, sizes: ModelSizes, shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """Bytes of a group with all its candidates; of the latents and conditioning of those it keeps; of a clip."""
    b, size = number_bytes(config), config.model
    frames, channels, height, width = shape
    latents = b * frames * channels * height * width
    clip = int(CLIP_BITS_PER_PIXEL * size.frames * size.height * size.width / 8)
    image = b * channels * height * width if sizes.transformer["in_channels"] > channels else 0
    condition = b * sizes.transformer["max_text_seq_length"] * sizes.transformer["text_embed_dim"] + image
    return config.sampler.candidates * (latents + clip) + condition, kept_clips(config) * latents + condition, clip


# Checks.


def _check_disk(made: Plan) -> None:
    bound = made.config.exchange.max_bytes
    if made.disk.blobs > bound:
        raise ConfigError(
            f"exchange: {made.disk.blobs / GIGA:.0f} GB of blobs exceed exchange.max_bytes = {bound / GIGA:.0f} GB: "
            "raise it, or lower learner.checkpoint_every, learner.keep_checkpoints or exchange.pipeline_depth"
        )


CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ('learner.gradient_checkpointing = "selective"', {"gradient_checkpointing": "selective"}),
    ('learner.gradient_checkpointing = "full"', {"gradient_checkpointing": "full"}),
    ("learner.micro_batch = 1", {"micro_batch": 1}),
    ("learner.zero_stage = 3", {"zero_stage": 3}),
    ('learner.reference = "host"', {"reference": "host"}),
    ('learner.optimizer = "adamw_8bit"', {"optimizer": "adamw_8bit"}),
    ("learner.offload_optimizer", {"offload_optimizer": True}),
    ('learner.train = "lora"', {"train": "lora"}),
    ("sampler.micro_batch = 1", {"micro_batch": 1}),
    ("sampler.vae_tiling", {"vae_tiling": True}),
    ("sampler.offload", {"offload": True}),
    ("reward.batch = 1", {"batch": 1}),
    ('model.dtype = "bfloat16"', {"dtype": "bfloat16"}),
)


def _refusal(made: Plan, need: Need, gpus: Mapping[str, Gpu]) -> str:
    """Formats one line: the role, its need, the memory of its GPU, and the need after each single change."""
    share = f" x {need.share:g}" if need.share < 1 else ""
    line = f"{need.role}: {need.total / GIGA:.0f} GB per GPU of {need.gpu.gigabytes:g}{share} ({need.gpu.name})"
    index = made.needs.index(need)
    better = []
    for name, change in CHANGES:
        section = name.split(".")[0]
        if section not in (need.role, "model") and need.role != "process":
            continue
        try:
            part = type(before := getattr(made.config, section))(**{**before.model_dump(), **change})
        except ValidationError:  # the change conflicts with other settings
            continue
        other = draft(made.config.model_copy(update={section: part}), made.sizes, gpus, made.mfu).needs[index]
        if other.total < 0.99 * need.total:
            better.append(f"{name} ({other.total / GIGA:.0f} GB)")
    if need.share < 1:
        better.append(f"cluster.{need.role}.gpus")
    return f"{line}: change {', '.join([*better, 'model.height and width, or the GPU'])}"
