"""The memory that each role of a run needs, computed from the config. No torch.

P: parameters of the denoiser; T: trained parameters: P, those that match `learner.trainable`, or A of one LoRA adapter;
b: bytes per number (2 or 4); N: ranks; M: `learner.micro_batch` groups of k kept clips (2 for a pair, 1 for supervised
fine-tuning). S, d and saved activations: `deploy/planning/model_sizes.py`; those of a part of the model are counted as
if all of it were trained. GB = 10⁹ bytes. Without a reference its rows are 0.

| role | term | bytes |
|---|---|---|
| sampler | weights | b P, plus T5 encoder and VAE at b each; with LoRA plus b A |
| | denoising | `FORWARD` S d b for each clip of a micro-batch, twice with guidance |
| | VAE decode | `DECODE` x 9 frames x H x W x channels x b for each clip; with `vae_tiling` H, W of a tile |
| | T5, VAE | with `offload` not resident: T5 is a phase, the VAE belongs to the decode phase |
| learner | weights | b P (ZeRO 3: b P / N) plus the position table; with LoRA plus both adapters |
| | reference | b P (sharded: / N; in host memory: 0); with LoRA b A, counted under weights |
| | gradients | b T, ZeRO 2 and 3: / N; one rank without ZeRO: 4 T |
| | master weights | 4 T, ZeRO: / N (bfloat16 stage 0 of several ranks runs as 1); none in float32 without ZeRO |
| | moments | 8 T, ZeRO: / N; `adamw_8bit`: `EIGHT_BIT` T |
| | exchange buffers | ZeRO: reduction bucket b min(T, 5e8); ZeRO 3: b min(P, 1e9) of gathered weights |
| | reference pass | `FORWARD` S d b of k M clips; from host memory b P |
| | activations | saved by autograd for k M clips (one forward), a recomputed block, `BACKWARD` S d b per clip |
| | VAE, rewards | of an algorithm that follows a reward's gradient: b each |
| | VAE backward | of such an algorithm, in activations: `SAVED_DECODE` x frames x H x W x channels x b per clip |
| | | with checkpointing: `CHECKPOINTED_DECODE` for all frames and `SAVED_DECODE` for the 9 being recomputed |
| | optimizer step | ZeRO: 4 T / N, the gradients in float32 |
| rewarder | heads | size of their files, with the encoders that are folders here |
| each process | CUDA | `CUDA_BYTES`: context, library workspaces |

With a reward's gradient, k is 1, guidance doubles the clips of a pass, and every denoising step with a gradient keeps
its activations. What autograd saves in the reward models is not counted.

`learner.offload_optimizer` moves master weights, moments and float32 gradients to host memory (`Need.host`). Denoising,
decoding, the training passes and the optimizer step run one after the other, so only the largest counts. A worker with
a share of a GPU gets that share of its memory and speed. In serial mode one process holds all roles.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import RewardConfig, RunConfig, algorithm_class, open_algorithm
from common.errors import ConfigError
from common.toon import WEIGHTS
from deploy.planning.model_sizes import ModelSizes

CUDA_BYTES = 10**9  # assumed
FORWARD = 12  # S d b: peak of a forward pass without gradients; measured from torch's allocations with fused attention
BACKWARD = 2  # S d b on top of the saved activations; measured in the same way
DECODE = 12  # measured in the same way: 10; plus 2 for the convolutions' workspace
REDUCE_BUCKET, LIVE_PARAMETERS = 5 * 10**8, 10**9  # DeepSpeed's defaults
SAVED_DECODE, CHECKPOINTED_DECODE = 42, 4  # what autograd saves: counted for a decode of published sizes
LATENTS_AT_ONCE = 2  # latent frames that the VAE decodes together; 3 once if their number is odd
FLOAT32 = 4
EIGHT_BIT = 2 + 2 * 4 / 256  # bytes per parameter: two 1-byte moments, a float32 scale per 256 values of each
GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """A GPU model: nominal memory in GB and dense bfloat16 peak in TFLOP/s, from its data sheet."""

    name: str
    gigabytes: float
    teraflops: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A800-80GB", 80, 312),
        Gpu("A100-80GB", 80, 312),
        Gpu("A100-40GB", 40, 312),
        Gpu("H100-80GB", 80, 989),
        Gpu("H200-141GB", 141, 989),
        Gpu("L40S-48GB", 48, 362),
        Gpu("RTX4090-24GB", 24, 165),
    )
}
OTHER_GPU = re.compile(r"([\w.-]+):(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")  # NAME:GB:TFLOPS


def gpu_of(words: str) -> Gpu | None:
    """The GPU that `words` mean: a name of `GPUS`, part of one ("a100", "4090"), a device's name ("NVIDIA H100 80GB
    HBM3"), or NAME:GB:TFLOPS for any other. None if there is none; the first of `GPUS` if the memory is not given."""
    other = OTHER_GPU.fullmatch(words)
    if other:
        memory, speed = float(other[2]), float(other[3])
        return Gpu(other[1], memory, speed) if memory and speed else None
    said = set(re.findall(r"[A-Z]*\d+[A-Z]*", words.upper().replace("RTX", " ")))
    memories = {word for word in said if re.fullmatch(r"\d+GB?", word)}
    for gpu in GPUS.values():
        model = gpu.name.partition("-")[0].removeprefix("RTX")
        if model in said and memories <= {f"{gpu.gigabytes}GB", f"{gpu.gigabytes}G"}:
            return gpu
    return None


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory of one worker of a role: all of `resident`, plus one of `phases` at a time."""

    role: str
    workers: int
    gpu: Gpu
    share: float  # of the GPU
    resident: Mapping[str, int]
    phases: Mapping[str, int]
    host: int = 0  # bytes of host memory in addition

    @property
    def total(self) -> int:
        """Peak GPU memory in bytes."""
        return sum(self.resident.values()) + max(self.phases.values(), default=0)

    @property
    def budget(self) -> float:
        """GPU memory available to the worker, in bytes."""
        return self.gpu.gigabytes * GIGA * min(1.0, self.share)


def needs(config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], tokens: int) -> tuple[Need, ...]:
    """Returns the needs of a run with `tokens` tokens per clip on `gpus` (role -> kind).

    One per role in the order sampler, rewarder, learner; in serial mode a single one for the process.
    """
    roles = (
        _need("sampler", config, gpus, *sampler_bytes(config, sizes, tokens)),
        _need("rewarder", config, gpus, {"heads": _heads_bytes(config.reward)}, {}),
        _need("learner", config, gpus, *learner_bytes(config, sizes, tokens), host=host_bytes(config, sizes)),
    )
    return (_one_process(roles),) if config.mode == "serial" else roles


def _need(
    role: str,
    config: RunConfig,
    gpus: Mapping[str, Gpu],
    resident: Mapping[str, int],
    phases: Mapping[str, int],
    host: int = 0,
) -> Need:
    workers = config.cluster.placement_of(role).count if config.mode == "cluster" else 1
    return Need(role, workers, gpus[role], share_of(role, config), {**resident, "CUDA": CUDA_BYTES}, phases, host)


def share_of(role: str, config: RunConfig) -> float:
    """GPUs per worker of a role: a fraction shares a GPU, above 1 it is a number of GPUs."""
    return config.cluster.placement_of(role).gpus if config.mode == "cluster" else 1.0


def _one_process(roles: tuple[Need, ...]) -> Need:
    """Serial mode: all roles are resident together, and one phase of one role runs at a time."""
    resident = {f"{need.role} {name}": held for need in roles for name, held in need.resident.items() if name != "CUDA"}
    phases = {f"{need.role} {name}": held for need in roles for name, held in need.phases.items()}
    return Need("process", 1, roles[-1].gpu, 1.0, {**resident, "CUDA": CUDA_BYTES}, phases, sum(n.host for n in roles))


def ranks_of(config: RunConfig) -> int:
    """N: ranks of the learner."""
    return config.cluster.learner.count if config.mode == "cluster" else 1


def kept_clips(config: RunConfig) -> int:
    """k: the clips of a group that the algorithm trains on."""
    return open_algorithm(config.algorithm).kept(config.sampler.candidates)


def has_reference(config: RunConfig) -> bool:
    """Whether the algorithm compares the policy with a reference."""
    return algorithm_class(config.algorithm.name).needs_reference


def has_rollouts(config: RunConfig) -> bool:
    """Whether the learner denoises and decodes clips itself."""
    return algorithm_class(config.algorithm.name).needs_rollouts


def clips_of_a_pass(config: RunConfig) -> int:
    """Clips of one group in a forward pass of the learner: k, doubled by guidance if it denoises itself."""
    guided = has_rollouts(config) and config.sampler.guidance > 1
    return kept_clips(config) * (2 if guided else 1)


def number_bytes(config: RunConfig) -> int:
    """b: bytes per number."""
    return 2 if config.model.dtype == "bfloat16" else 4


def sampler_bytes(config: RunConfig, sizes: ModelSizes, tokens: int) -> tuple[dict[str, int], dict[str, int]]:
    """Returns (resident, phases) of one sampler in bytes, each name -> bytes. `tokens` is per clip."""
    b, batch = number_bytes(config), min(config.sampler.micro_batch, config.sampler.candidates)
    adapter = sizes.adapter_parameters(config.learner.lora) if config.learner.train == "lora" else 0
    calls = batch * (2 if config.sampler.guidance > 1 else 1)
    models = {"T5": b * sizes.text_parameters, "VAE": b * sizes.vae_parameters}
    resident = {"transformer": b * (sizes.transformer_parameters + sizes.position_values + adapter)}
    denoising, decoding = FORWARD * calls * tokens * sizes.width * b, batch * _decode_bytes(config, sizes)
    if config.sampler.offload:
        return resident, {"T5": models["T5"], "denoising": denoising, "VAE decode": models["VAE"] + decoding}
    return resident | models, {"denoising": denoising, "VAE decode": decoding}


def _decode_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """Bytes to decode one clip: its widest layer, for the latent frames decoded together, for one frame or tile."""
    size, vae = config.model, sizes.vae
    frames, height, width = _frames_at_once(config, sizes), size.height, size.width
    if config.sampler.vae_tiling:  # diffusers' default tile: half of the VAE's sample size
        height, width = min(height, vae["sample_height"] // 2), min(width, vae["sample_width"] // 2)
    return DECODE * frames * height * width * max(vae["block_out_channels"][:2]) * number_bytes(config)


def learner_bytes(config: RunConfig, sizes: ModelSizes, tokens: int) -> tuple[dict[str, int], dict[str, int]]:
    """Returns (resident, phases) of one rank of the learner in bytes, each name -> bytes. `tokens` is per clip."""
    rules, b, ranks, stage = config.learner, number_bytes(config), ranks_of(config), _stage(config)
    whole, lora = sizes.transformer_parameters, rules.lora if rules.train == "lora" else None
    trained = sizes.trained_parameters(rules)
    adapters = (1 + has_reference(config)) * trained if lora else 0
    resident = {
        "weights": b * (_split(whole + adapters, stage >= 3, ranks) + sizes.position_values),
        "reference": 0 if rules.reference == "host" else _reference(config, sizes),
        "gradients": b * _split(trained, stage >= 2, ranks),
        "exchange buffers": b * _exchanged(trained, whole, stage),
    }
    own, step = _optimizer_bytes(config, trained), 0
    if not _sharding(config):
        resident["gradients"] = 0 if rules.offload_optimizer else FLOAT32 * trained
    elif stage and not rules.offload_optimizer:
        step = FLOAT32 * _split(trained, True, ranks)
    clips, block = clips_of_a_pass(config) * min(rules.micro_batch, rules.batch_size // ranks), 0
    copies = sizes.gathered(_latent_shape(config, sizes), config.model.attention)
    passes = open_algorithm(config.algorithm).gradient_passes
    saved = passes * sizes.saved_bytes(clips, tokens, b, lora, rules.gradient_checkpointing, copies)
    if rules.gradient_checkpointing != "off":
        block = sizes.block_bytes(clips, tokens, b, lora, copies)
    if has_rollouts(config):
        resident["VAE, rewards"] = b * sizes.vae_parameters + _heads_bytes(config.reward)
        saved += min(rules.micro_batch, rules.batch_size // ranks) * _vae_backward_bytes(config, sizes)
    unit = clips * tokens * sizes.width * b
    copied = _reference(config, sizes) if rules.reference == "host" else 0
    return resident | ({} if rules.offload_optimizer else own), {
        "reference pass": FORWARD * unit + copied if has_reference(config) else 0,
        "activations": saved + block + BACKWARD * unit,
        "optimizer step": step,
    }


def _vae_backward_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """Bytes that a backward pass through the decoding of one clip needs."""
    size, vae = config.model, sizes.vae
    frame = size.height * size.width * max(vae["block_out_channels"][:2]) * number_bytes(config)
    if config.learner.gradient_checkpointing == "off":
        return math.ceil(SAVED_DECODE * size.frames * frame)
    return math.ceil((CHECKPOINTED_DECODE * size.frames + SAVED_DECODE * _frames_at_once(config, sizes)) * frame)


def _frames_at_once(config: RunConfig, sizes: ModelSizes) -> int:
    """Frames that the VAE decodes together."""
    return min(config.model.frames, LATENTS_AT_ONCE * int(sizes.vae["temporal_compression_ratio"]) + 1)


def _latent_shape(config: RunConfig, sizes: ModelSizes) -> tuple[int, int, int, int]:
    return sizes.latent_shape(config.model.frames, config.model.height, config.model.width)


def _exchanged(trained: int, whole: int, stage: int) -> int:
    """Numbers in ZeRO's buffers: the reduction bucket, and with stage 3 the gathered weights."""
    reduced = min(trained, REDUCE_BUCKET) if stage else 0
    return reduced + (min(whole, LIVE_PARAMETERS) if stage == 3 else 0)


def host_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """Host memory of one rank of the learner in bytes, besides that of its process."""
    rules = config.learner
    trained = sizes.trained_parameters(rules)
    gradients = FLOAT32 * _split(trained, _stage(config) > 0, ranks_of(config))
    optimizer = gradients + sum(_optimizer_bytes(config, trained).values()) if rules.offload_optimizer else 0
    return optimizer + (_reference(config, sizes) if rules.reference == "host" else 0)


def _sharding(config: RunConfig) -> bool:
    """Whether the learner uses DeepSpeed."""
    return ranks_of(config) > 1 or config.learner.zero_stage > 0


def _stage(config: RunConfig) -> int:
    """The effective ZeRO stage: bfloat16 under DeepSpeed uses at least stage 1."""
    stage = config.learner.zero_stage
    return max(stage, 1) if _sharding(config) and number_bytes(config) == 2 else stage


def _reference(config: RunConfig, sizes: ModelSizes) -> int:
    """Bytes of the frozen copy of the model; 0 where the reference is an adapter, or the algorithm has none."""
    if config.learner.train == "lora" or not has_reference(config):
        return 0
    share = _split(sizes.transformer_parameters, config.learner.reference == "sharded", ranks_of(config))
    return number_bytes(config) * (share + sizes.position_values)


def _optimizer_bytes(config: RunConfig, trained: int) -> dict[str, int]:
    """Bytes of master weights and moments of one rank."""
    rules, stage = config.learner, _stage(config)
    mine = _split(trained, stage > 0, ranks_of(config))
    copies = stage > 0 or number_bytes(config) == 2 or rules.offload_optimizer
    moments = 2 * FLOAT32 if rules.optimizer == "adamw" else EIGHT_BIT
    return {"master weights": FLOAT32 * mine if copies else 0, "moments": math.ceil(moments * mine)}


def _split(count: int, sharded: bool, ranks: int) -> int:
    return math.ceil(count / ranks) if sharded else count


def _heads_bytes(reward: RewardConfig) -> int:
    """Bytes of the heads, with their local encoders, and of the local judges.

    If the heads' folder is not on this machine, the size of the embedded heads is used: they have the same layers.
    """
    heads = _weights_bytes(Path(reward.path)) or _weights_bytes(WEIGHTS / "heads") if reward.path else 0
    encoders = _encoders_bytes(Path(reward.path)) if reward.path else 0
    return heads + encoders + sum(_weights_bytes(Path(one.path)) for one in reward.judges.values() if one.path)


def _encoders_bytes(folder: Path) -> int:
    """Bytes of the models that the heads of `folder` name as folders, absolute or relative to `folder` or to here.

    Raises `ConfigError` if a description cannot be read.
    """
    total = 0
    for file in folder.glob("*.json"):
        try:
            paths = json.loads(file.read_text("utf-8")).get("models", {}).values()
        except (ValueError, AttributeError):
            raise ConfigError(f"{file}: not the description of a reward head") from None
        total += sum(_weights_bytes(folder / path if (folder / path).is_dir() else Path(path)) for path in paths)
    return total


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
