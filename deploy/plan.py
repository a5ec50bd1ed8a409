"""What a run needs, before GPUs are rented: memory, time and disk per role, computed from the config. No torch.

P parameters of the denoiser, T of the optimizer (P, or the A of one adapter), b bytes per number (2 or 4), N ranks,
M = `learner.micro_batch` pairs, S and d and what autograd saves: `deploy/sizes.py`. GB are 10⁹ bytes.

| role | term | bytes |
|---|---|---|
| sampler | weights | b P, and the T5 encoder and the VAE in b; with LoRA b A |
| | denoising | `FORWARD` S d b for each clip of a micro-batch, twice with guidance |
| | VAE decode | `DECODE` x 9 frames x H x W x channels x b for each clip; with `vae_tiling` H, W of a tile |
| | T5, VAE | with `offload` no weights but a phase: T5 alone, the VAE with what it decodes |
| learner | weights | b P (ZeRO 3: b P / N) and the table of positions; with LoRA both adapters |
| | reference | b P (sharded: / N; in host memory: 0); with LoRA b A, in the weights' line |
| | gradients | b T, ZeRO 2 and 3: / N; one rank without ZeRO: 4 T |
| | master weights | 4 T, ZeRO: / N (bfloat16 stage 0 of several ranks runs as 1); none in float32 without ZeRO |
| | moments | 8 T, ZeRO: / N; `adamw_8bit`: `EIGHT_BIT` T |
| | exchange buffers | ZeRO: reduction bucket b min(T, 5e8); ZeRO 3: b min(P, 1e9) of gathered weights |
| | reference pass | `FORWARD` S d b of 2 M clips; from host memory b P |
| | activations | what autograd saves of 2 M clips (one forward), a recomputed block, `BACKWARD` S d b a clip |
| | optimizer step | ZeRO: 4 T / N, the gradients in float32 |
| rewarder | heads | their files |
| each process | CUDA | `CUDA_BYTES`: context, library workspaces |

`learner.offload_optimizer` moves masters, moments and float32 gradients to host memory, which `Need.host` counts.
Denoising, decoding, the passes and the optimizer's step come one after the other: the largest counts. A worker with a
share of a GPU has that share of its memory and of its speed. In serial mode one process holds all roles.

Time is operations / (peak of the GPU x MFU). MFU is an assumption (`--mfu`), not a measurement; loading, pushes and
scoring are left out, and so are what `cache_threshold` skips and the way of offloaded weights to the GPU and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.config import ConfigError, RewardConfig, RunConfig
from common.exchange.scoring import SHOWN
from deploy.sizes import EMBEDDED, ModelSizes

CUDA_BYTES = 10**9  # assumed
FORWARD = 12  # S d b: most that a forward pass without gradient holds; counted on torch's allocations, attention fused
BACKWARD = 2  # S d b beside what is saved; counted likewise
DECODE = 12  # counted likewise: 10; two more for the convolutions' workspace
REDUCE_BUCKET, LIVE_PARAMETERS = 5 * 10**8, 10**9  # DeepSpeed's defaults
LATENTS_AT_ONCE = 2  # that the VAE decodes together; a third one where their number is odd
CLIP_BITS_PER_PIXEL = 0.5  # assumed of H.264
FLOAT32 = 4
EIGHT_BIT = 2 + 2 * 4 / 256  # two moments of a byte, a scale for each 256 of them
TIMESTEPS = 1000  # T, of the models' schedulers
GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU: nominal memory in GB, dense bfloat16 peak in TFLOP/s, both from its data sheet."""

    name: str
    gigabytes: float
    teraflops: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A800-80GB", 80, 312),
        Gpu("H100-80GB", 80, 989),
        Gpu("H200-141GB", 141, 989),
        Gpu("RTX4090-24GB", 24, 165),
    )
}


@dataclass(frozen=True)
class Need:
    """Bytes that one worker of a role holds: `resident` always, of `phases` one at a time."""

    role: str
    workers: int
    gpu: Gpu
    share: float  # of the GPU
    resident: Mapping[str, int]
    phases: Mapping[str, int]
    host: int = 0  # bytes of host memory beside it

    @property
    def total(self) -> int:
        """The most that it holds at once."""
        return sum(self.resident.values()) + max(self.phases.values(), default=0)

    @property
    def budget(self) -> float:
        """Bytes that it may hold."""
        return self.gpu.gigabytes * GIGA * min(1.0, self.share)


@dataclass(frozen=True)
class Pace:
    """Seconds of work, under the assumed MFU."""

    clip: float  # one candidate on one sampler
    step: float  # one optimizer step
    samplers: int  # there are
    samplers_needed: int | None  # so that the learner does not wait; None in serial mode, where roles take turns

    def total(self, steps: int, clips_per_step: int) -> float:
        """Seconds of `steps` steps: of the slower side, in serial mode of both."""
        sampling = clips_per_step * self.clip / self.samplers
        return steps * (sampling + self.step if self.samplers_needed is None else max(sampling, self.step))


@dataclass(frozen=True)
class Disk:
    """Bytes in the run's folder, and of what passes through the hub."""

    blobs: int
    checkpoints: int
    versions: int
    push: int  # that each sampler pulls of a version
    group: int  # of a prompt's candidates and conditioning


@dataclass(frozen=True)
class Plan:
    """What `plan` computes."""

    config: RunConfig
    sizes: ModelSizes
    mfu: float
    shape: tuple[int, int, int, int]  # (F, C, h, w)
    tokens: int
    needs: tuple[Need, ...]
    pace: Pace
    disk: Disk


def plan(config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float) -> Plan:
    """The needs of a run on `gpus` (role -> kind). `ConfigError` in one line, naming the knobs, for what cannot fit."""
    made = draft(config, sizes, gpus, mfu)
    for need in made.needs:
        if need.total > need.budget:
            raise ConfigError(_refusal(made, need, gpus))
    _check_disk(made)
    return made


def draft(config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float) -> Plan:
    """`plan` without the refusals of what does not fit."""
    _check(config, mfu)
    size = config.model
    shape = sizes.latent_shape(size.frames, size.height, size.width)
    tokens = sizes.tokens(shape)
    needs = (
        _need("sampler", config, gpus, *sampler_bytes(config, sizes, tokens)),
        _need("rewarder", config, gpus, {"heads": _heads_bytes(config.reward)}, {}),
        _need("learner", config, gpus, *learner_bytes(config, sizes, tokens), host=host_bytes(config, sizes)),
    )
    together = (_one_process(needs),) if config.mode == "serial" else needs
    pace = _pace(config, sizes, shape, needs, mfu)
    return Plan(config, sizes, mfu, shape, tokens, together, pace, _disk(config, sizes, shape))


def _check(config: RunConfig, mfu: float) -> None:
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu}: above 0 and at most 1")
    if config.model.device == "cpu":
        raise ConfigError("model.device = 'cpu': `plan` is about GPUs; give model.device = \"cuda:0\"")
    if config.simulate:
        raise ConfigError("simulate = true: there are no models to plan for")
    ranks = _ranks(config)
    if config.learner.pairs_per_step % ranks:
        raise ConfigError(f"learner.pairs_per_step = {config.learner.pairs_per_step}: must divide by {ranks} ranks")


def _ranks(config: RunConfig) -> int:
    return config.cluster.learners if config.mode == "cluster" else 1


def _number(config: RunConfig) -> int:
    """b: bytes per number."""
    return 2 if config.model.dtype == "bfloat16" else 4


def _need(
    role: str,
    config: RunConfig,
    gpus: Mapping[str, Gpu],
    resident: Mapping[str, int],
    phases: Mapping[str, int],
    host: int = 0,
) -> Need:
    cluster = config.mode == "cluster"
    workers = getattr(config.cluster, f"{role}s") if cluster else 1
    share = getattr(config.cluster, f"{role}_gpus") if cluster else 1.0
    return Need(role, workers, gpus[role], share, {**resident, "CUDA": CUDA_BYTES}, phases, host)


def _one_process(needs: tuple[Need, ...]) -> Need:
    """Serial mode: everything is resident beside everything, one phase of one role at a time."""
    resident = {f"{need.role} {name}": held for need in needs for name, held in need.resident.items() if name != "CUDA"}
    phases = {f"{need.role} {name}": held for need in needs for name, held in need.phases.items()}
    return Need("process", 1, needs[-1].gpu, 1.0, {**resident, "CUDA": CUDA_BYTES}, phases, sum(n.host for n in needs))


# Memory.


def sampler_bytes(config: RunConfig, sizes: ModelSizes, tokens: int) -> tuple[dict[str, int], dict[str, int]]:
    """(resident, phases) of one sampler."""
    b, batch = _number(config), min(config.sampler.micro_batch, config.sampler.candidates)
    adapter = sizes.adapter_parameters(config.learner.lora) if config.learner.train == "lora" else 0
    calls = batch * (2 if config.sampler.guidance > 1 else 1)
    models = {"T5": b * sizes.text_parameters, "VAE": b * sizes.vae_parameters}
    resident = {"transformer": b * (sizes.transformer_parameters + sizes.position_values + adapter)}
    denoising, decoding = FORWARD * calls * tokens * sizes.width * b, batch * _decode_bytes(config, sizes)
    if config.sampler.offload:
        return resident, {"T5": models["T5"], "denoising": denoising, "VAE decode": models["VAE"] + decoding}
    return resident | models, {"denoising": denoising, "VAE decode": decoding}


def _decode_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """Of one clip: its widest layer, of the latents that go together, over the picture or over one tile."""
    size, vae = config.model, sizes.vae
    frames = min(size.frames, LATENTS_AT_ONCE * int(vae["temporal_compression_ratio"]) + 1)
    height, width = size.height, size.width
    if config.sampler.vae_tiling:  # diffusers' tiles: half of the size that the VAE was made for
        height, width = min(height, vae["sample_height"] // 2), min(width, vae["sample_width"] // 2)
    return DECODE * frames * height * width * max(vae["block_out_channels"][:2]) * _number(config)


def learner_bytes(config: RunConfig, sizes: ModelSizes, tokens: int) -> tuple[dict[str, int], dict[str, int]]:
    """(resident, phases) of one rank of the learner."""
    rules, b, ranks, stage = config.learner, _number(config), _ranks(config), _stage(config)
    whole, lora = sizes.transformer_parameters, rules.lora if rules.train == "lora" else None
    trained = sizes.adapter_parameters(lora) if lora else whole
    resident = {
        "weights": b * (_split(whole + (2 * trained if lora else 0), stage >= 3, ranks) + sizes.position_values),
        "reference": 0 if lora or rules.reference == "host" else _reference(config, sizes),
        "gradients": b * _split(trained, stage >= 2, ranks),
        "exchange buffers": (b * min(trained, REDUCE_BUCKET) if stage else 0)
        + (b * min(whole, LIVE_PARAMETERS) if stage == 3 else 0),
    }
    own, step = _optimizer_bytes(config, trained), 0
    if not _sharding(config):
        resident["gradients"] = 0 if rules.offload_optimizer else FLOAT32 * trained
    elif stage and not rules.offload_optimizer:
        step = FLOAT32 * _split(trained, True, ranks)
    clips, block = 2 * min(rules.micro_batch, rules.pairs_per_step // ranks), 0
    saved = sizes.saved_bytes(clips, tokens, b, lora, rules.gradient_checkpointing)
    if rules.gradient_checkpointing != "off":
        block = sizes.block_bytes(clips, tokens, b, lora)
    unit = clips * tokens * sizes.width * b
    visit = _reference(config, sizes) if rules.reference == "host" and not lora else 0
    return resident | ({} if rules.offload_optimizer else own), {
        "reference pass": FORWARD * unit + visit,
        "activations": saved + block + BACKWARD * unit,
        "optimizer step": step,
    }


def host_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """Of one rank of the learner, beside what its process takes anyway."""
    rules, lora = config.learner, config.learner.train == "lora"
    trained = sizes.adapter_parameters(rules.lora) if lora else sizes.transformer_parameters
    gradients = FLOAT32 * _split(trained, _stage(config) > 0, _ranks(config))
    optimizer = gradients + sum(_optimizer_bytes(config, trained).values()) if rules.offload_optimizer else 0
    return optimizer + (_reference(config, sizes) if rules.reference == "host" and not lora else 0)


def _sharding(config: RunConfig) -> bool:
    """Whether DeepSpeed holds the model."""
    return _ranks(config) > 1 or config.learner.zero_stage > 0


def _stage(config: RunConfig) -> int:
    """The ZeRO stage as it runs."""
    stage = config.learner.zero_stage
    return max(stage, 1) if _sharding(config) and _number(config) == 2 else stage


def _reference(config: RunConfig, sizes: ModelSizes) -> int:
    """Of the frozen copy of a full training."""
    share = _split(sizes.transformer_parameters, config.learner.reference == "sharded", _ranks(config))
    return _number(config) * (share + sizes.position_values)


def _optimizer_bytes(config: RunConfig, trained: int) -> dict[str, int]:
    """Masters and moments of one rank."""
    rules, stage = config.learner, _stage(config)
    mine = _split(trained, stage > 0, _ranks(config))
    copies = stage > 0 or _number(config) == 2 or rules.offload_optimizer
    moments = 2 * FLOAT32 if rules.optimizer == "adamw" else EIGHT_BIT
    return {"master weights": FLOAT32 * mine if copies else 0, "moments": math.ceil(moments * mine)}


def _split(count: int, sharded: bool, ranks: int) -> int:
    return math.ceil(count / ranks) if sharded else count


def _heads_bytes(reward: RewardConfig) -> int:
    """Of the heads and the local judges; where there is no folder of heads here, of the embedded ones: same layers."""
    heads = _weights_bytes(Path(reward.path)) or _weights_bytes(EMBEDDED / "heads") if reward.path else 0
    return heads + sum(_weights_bytes(Path(judge.path)) for judge in reward.judges.values() if judge.path)


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


# Time.


def _pace(
    config: RunConfig, sizes: ModelSizes, shape: tuple[int, int, int, int], needs: tuple[Need, ...], mfu: float
) -> Pace:
    speed = {need.role: need.gpu.teraflops * 1e12 * mfu * min(1.0, need.share) for need in needs}
    matrices, attention = sizes.forward_flops(sizes.tokens(shape))
    calls = config.sampler.steps + guided_steps(config)
    clip = (calls * (matrices + attention) + sizes.decode_flops(shape)) / speed["sampler"]
    ranks, rules = _ranks(config), config.learner
    forwards = 2 * (matrices + attention)  # policy and reference
    again = {"off": 0.0, "selective": matrices, "full": matrices + attention}[rules.gradient_checkpointing]
    backward = (1 if rules.train == "lora" else 2) * matrices + 2 * attention
    step = 2 * rules.pairs_per_step / ranks * (forwards + again + backward) / speed["learner"]
    samplers = config.cluster.samplers if config.mode == "cluster" else 1
    needed = math.ceil(clips_per_step(config) * clip / step) if config.mode == "cluster" else None
    return Pace(clip, step, samplers, needed)


def guided_steps(config: RunConfig) -> int:
    """Denoising steps that take two captions: they stand at t + 1 = T / steps, 2 T / steps ... T."""
    how, t = config.sampler, TIMESTEPS
    if how.guidance == 1:
        return 0
    low, high = how.guidance_interval
    return sum(low <= (t // how.steps * place - 1) / t <= high for place in range(1, how.steps + 1))


def clips_per_step(config: RunConfig) -> int:
    """Candidates that one optimizer step takes, where no group is tied."""
    return config.learner.pairs_per_step * config.sampler.candidates


# Disk.


def _disk(config: RunConfig, sizes: ModelSizes, shape: tuple[int, int, int, int]) -> Disk:
    rules, b = config.learner, _number(config)
    whole = sizes.transformer_parameters
    trained = sizes.adapter_parameters(rules.lora) if rules.train == "lora" else whole
    optimizer = 3 * FLOAT32 * trained if b == 2 or rules.zero_stage else 2 * FLOAT32 * trained
    checkpoint = 2 * b * trained + optimizer
    versions = min(config.exchange.max_lag + 2, config.steps // rules.steps_per_push)
    group, pair, clip = _group_bytes(config, sizes, shape)
    all_pairs = config.steps * rules.pairs_per_step
    until_freed = (rules.keep_checkpoints + 1) * rules.checkpoint_every * rules.pairs_per_step
    waiting = (config.exchange.max_lag + 1) * config.pairs_per_push
    running = min(config.exchange.pipeline_depth, all_pairs)
    return Disk(
        blobs=running * group + min(until_freed + waiting, all_pairs) * pair + min(SHOWN, all_pairs) * 2 * clip,
        checkpoints=checkpoint * (rules.keep_checkpoints + 1),  # one more while it is written
        versions=b * whole + versions * b * trained,
        push=b * trained,
        group=group,
    )


def _group_bytes(config: RunConfig, sizes: ModelSizes, shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """Bytes of a group with all its candidates; of a pair, which keeps two latents and the conditioning; of a clip."""
    b, size = _number(config), config.model
    frames, channels, height, width = shape
    latents = b * frames * channels * height * width
    clip = int(CLIP_BITS_PER_PIXEL * size.frames * size.height * size.width / 8)
    image = b * channels * height * width if sizes.transformer["in_channels"] > channels else 0
    condition = b * sizes.transformer["max_text_seq_length"] * sizes.transformer["text_embed_dim"] + image
    return config.sampler.candidates * (latents + clip) + condition, 2 * latents + condition, clip


# Refusals.


def _check_disk(made: Plan) -> None:
    bound = made.config.exchange.max_bytes
    if made.disk.blobs > bound:
        raise ConfigError(
            f"exchange: {made.disk.blobs / GIGA:.0f} GB of blobs, of exchange.max_bytes = {bound / GIGA:.0f} GB: "
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
    """One line: the role, what it needs of what there is, and what each single change makes of it."""
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
        except ValidationError:  # it does not go with what else is set
            continue
        other = draft(made.config.model_copy(update={section: part}), made.sizes, gpus, made.mfu).needs[index]
        if other.total < 0.99 * need.total:
            better.append(f"{name} ({other.total / GIGA:.0f} GB)")
    if need.share < 1:
        better.append(f"cluster.{need.role}_gpus")
    return f"{line}: change {', '.join([*better, 'model.height and width, or the GPU'])}"
