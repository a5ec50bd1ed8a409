"""`douga plan`: sizes compared with the real classes, memory compared with a real learner, and every error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from benchmarks.learning import saved_bytes as kept_bytes
from common.config import LoraConfig, load_config
from common.errors import ConfigError
from common.models.attention import set_attention
from common.models.cogvideox import decode_latents, open_model, predict_v
from common.models.lora import adapter_parameters, inject_lora
from deploy.cli.main import main
from deploy.planning.memory import (
    BACKWARD,
    DECODE,
    FORWARD,
    GIGA,
    GPUS,
    _vae_backward_bytes,
    host_bytes,
    learner_bytes,
    sampler_bytes,
)
from deploy.planning.model_sizes import ModelSizes, families, family_sizes, folder_sizes
from deploy.planning.plan import Plan, clips_per_step, draft, guided_steps, plan
from learner.activation_checkpointing import Recompute, recompute_in
from learner.learner import Learner
from tests.support.learner.fakes import MemoryExchange, tiny_config, tiny_model
from tests.support.tiny import LEARNED, TEXT_TO_VIDEO, V1_5, tiny_pipeline

ROOT = Path(__file__).parents[3]
ONLINE = ROOT / "deploy" / "launch" / "configs" / "a800-online.toml"
TINY: dict[str, dict[str, Any]] = {"5b": LEARNED, "1.5": V1_5, "2b": TEXT_TO_VIDEO}
# Published: 2B, 5B-I2V and 1.5-5B-I2V in billions of parameters, and T5 and VAE.
PUBLISHED = {"2b": 1.69, "5b-i2v": 5.57, "1.5-5b-i2v": 5.57}

FULL = {
    "mode": "cluster",
    "steps": 100,
    "model.device": "cuda:0",
    "model.dtype": "bfloat16",
    "model.frames": 49,
    "model.height": 480,
    "model.width": 720,
    "sampler.steps": 50,
    "sampler.guidance": 6.0,
    "sampler.micro_batch": 1,
    "learner.micro_batch": 1,
    "learner.zero_stage": 2,
    "learner.gradient_checkpointing": "full",
    "cluster.sampler.count": 8,
    "cluster.learner.count": 8,
    "cluster.sampler.gpus": 1,
    "cluster.rewarder.gpus": 1,
    "cluster.learner.gpus": 1,
}
GPU_ROLES = ("sampler", "rewarder", "learner")
OFF = {"learner__gradient_checkpointing": "off", "learner__keep_checkpoints": 3}


def made(family: str = "5b-i2v", gpu: str = "A800-80GB", mfu: float = 0.4, check: bool = True, **changes: Any) -> Plan:
    """The plan of `FULL` with `changes` (``__`` for the dot)."""
    config = load_config(None, FULL | {name.replace("__", "."): value for name, value in changes.items()})
    gpus = dict.fromkeys(GPU_ROLES, GPUS[gpu])
    return (plan if check else draft)(config, family_sizes(family), gpus, mfu)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sizes_of(module: Any) -> ModelSizes:
    """The sizes of a given transformer."""
    other = family_sizes("2b")
    return ModelSizes("tiny", module.config, other.vae, other.text_encoder)


# Parameters.


@pytest.mark.parametrize("family", families())
def test_parameters_of_the_published_families_are_those_of_the_real_classes(family: str) -> None:
    sizes = family_sizes(family)
    vae = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**sizes.transformer)
        assert sizes.vae_parameters == count(AutoencoderKLCogVideoX(**sizes.vae, **vae)) == 215_583_907
        assert sizes.text_parameters == count(T5EncoderModel(T5Config(**sizes.text_encoder))) == 4_762_310_656
    assert sizes.transformer_parameters == count(transformer)
    assert sizes.transformer_parameters / GIGA == pytest.approx(PUBLISHED[family], abs=0.005)
    assert sizes.position_values == sum(buffer.numel() for buffer in transformer.buffers())


@pytest.mark.parametrize("family", TINY)
def test_parameters_come_from_a_folder_s_configs(tmp_path: Path, family: str) -> None:
    folder = tiny_pipeline(tmp_path, **TINY[family])
    sizes, model = folder_sizes(folder), open_model(folder)
    transformer = model.load_transformer("float32", "cpu")
    assert dict(sizes.parameters()) == {name: one.numel() for name, one in transformer.named_parameters()}
    assert sizes.position_values == sum(buffer.numel() for buffer in transformer.buffers())
    assert sizes.vae_parameters == count(model.load_vae("float32", "cpu"))
    assert sizes.text_parameters == count(model.load_text_encoder("float32", "cpu"))
    assert sizes.latent_shape(9, 48, 64) == model.latent_shape(9, 48, 64)


@pytest.mark.parametrize("targets", [("to_q", "to_k", "to_v", "to_out.0"), ("ff.net.2", "ff.net.0.proj"), ("linear",)])
def test_parameters_of_an_adapter(tmp_path: Path, targets: tuple[str, ...]) -> None:
    transformer = tiny_model(tmp_path / "model").load_transformer("float32", "cpu")
    lora = LoraConfig(rank=3, targets=targets)
    sizes = sizes_of(transformer)
    inject_lora(transformer, lora, 0)
    assert sizes.adapter_parameters(lora) == sum(p.numel() for p in adapter_parameters(transformer, "policy").values())


def test_trained_parameters_are_those_of_the_patterns() -> None:
    """5B-I2V: a block's attention has four square layers with biases, and norms of 64 for queries and keys."""
    sizes, d = family_sizes("5b-i2v"), 3072
    attention = load_config(None, FULL | {"learner.train": "full", "learner.trainable": "*.attn1.*"})
    count = 42 * (4 * (d * d + d) + 4 * 64)
    assert sizes.trained_parameters(attention.learner) == count
    held, _ = learner_bytes(attention, sizes, 1000)
    assert held["moments"] == count  # 8 bytes over 8 ranks
    whole, part = made(**OFF, check=False), draft(attention, sizes, dict.fromkeys(GPU_ROLES, GPUS["A800-80GB"]), 0.4)
    assert part.disk.push == whole.disk.push  # versions are complete
    assert part.disk.checkpoints < whole.disk.checkpoints
    wrong = attention.learner.model_copy(update={"trainable": ("*.attn2.*",)})
    with pytest.raises(ConfigError, match=r"learner\.trainable = '\*\.attn2\.\*': no parameter"):
        sizes.trained_parameters(wrong)


# Activations and operations.


def small(layers: int, lora: bool = False, recompute: Recompute = "off", side: int = 16) -> tuple[Any, ModelSizes]:
    """A transformer wide enough for its d to count, in training mode; its latents have `side` x `side` places."""
    module = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=8,
        out_channels=4,
        num_layers=layers,
        text_embed_dim=32,
        time_embed_dim=16,
        max_text_seq_length=8,
        sample_height=side,
        sample_width=side,
        sample_frames=9,
        use_rotary_positional_embeddings=True,
    ).train()
    sizes = sizes_of(module)
    recompute_in(module, recompute)
    if lora:
        inject_lora(module, LoraConfig(), 0)
    return module, sizes


def predicted(module: Any, batch: int, side: int = 16) -> torch.Tensor:
    latents, image = torch.randn(batch, 3, 4, side, side), torch.randn(batch, 1, 4, side, side)
    return predict_v(module, latents, image, torch.full((batch,), 5), torch.randn(batch, 8, 32))


def saved_bytes(module: Any, batch: int) -> int:
    """Bytes that autograd keeps after a forward pass: each storage once, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # keeps them alive, so that no address is reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert predicted(module, batch).requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recompute", ["off", "full"])
def test_saved_activations_are_those_that_autograd_keeps(lora: bool, recompute: Recompute) -> None:
    module, sizes = small(4, lora, recompute)
    tokens = sizes.tokens((3, 4, 16, 16))
    planned = sizes.saved_bytes(2, tokens, 4, LoraConfig() if lora else None, recompute)
    assert planned == pytest.approx(saved_bytes(module, 2), rel=0.1)


def test_a_checkpointed_block_recomputes_what_a_whole_one_saves() -> None:
    (one, sizes), (two, _) = small(1), small(2)
    block = sizes.block_bytes(2, sizes.tokens((3, 4, 16, 16)), 4, None)
    assert block == pytest.approx(saved_bytes(two, 2) - saved_bytes(one, 2), rel=0.05)


def test_operations_are_those_that_torch_counts() -> None:
    (one, sizes), (two, _) = small(1), small(2)
    counted = []
    for module in (one, two):
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
            predicted(module, 2)
        counted.append(counter.get_total_flops())
    block = 2 * sum(sizes.forward_flops(sizes.tokens((3, 4, 16, 16))))
    assert block == pytest.approx(counted[1] - counted[0], rel=0.02)


def test_operations_of_decoding_are_those_that_torch_counts() -> None:
    sizes = family_sizes("5b-i2v")
    vae = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        AutoencoderKLCogVideoX(**sizes.vae, **vae).decode(torch.empty(1, 16, 3, 8, 12))
    assert sizes.decode_flops((3, 16, 8, 12)) == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("family", families())
def test_sparse_causal_attention_does_fewer_products(family: str) -> None:
    """Per query of a late frame the caption and two frames, of 13 (1.5: 11 pairs of 21, padded)."""
    sizes = family_sizes(family)
    frames, size = (21, (96, 170)) if family == "1.5-5b-i2v" else (13, (60, 90))
    shape, text = (frames, 16, *size), sizes.transformer["max_text_seq_length"]
    steps, frame = (11 if frames == 21 else 13), size[0] * size[1] // 4
    assert sizes.frame_tokens(shape) == (steps, frame)
    assert sizes.attended(shape, "full") == (text + steps * frame) ** 2
    keys = [text + frame] * 2 + [text + 2 * frame] * (steps - 2)
    assert sizes.attended(shape, "sparse_causal") == text * (text + steps * frame) + frame * sum(keys)
    assert sizes.gathered(shape, "sparse_causal") == sum(keys[2:])
    assert sizes.gathered(shape, "full") == 0


def test_sparse_causal_attention_is_in_the_plan() -> None:
    full, sparse = made(), made(model__attention="sparse_causal")
    assert sparse.pace.clip < 0.7 * full.pace.clip
    copies = 2 * 2 * 11 * (226 + 2 * 1350) * 3072 * 2  # keys and values of a pair's late frames, bfloat16
    assert sparse.needs[2].phases["activations"] - full.needs[2].phases["activations"] == copies


@pytest.mark.parametrize("recompute", ["off", "full"])
def test_copied_keys_and_values_are_those_that_autograd_keeps(recompute: Recompute) -> None:
    module, sizes = small(4, False, recompute)
    shape = (3, 4, 16, 16)
    set_attention(module, "sparse_causal", shape)
    copies = sizes.gathered(shape, "sparse_causal")
    planned = sizes.saved_bytes(2, sizes.tokens(shape), 4, None, recompute, copies)
    assert planned == pytest.approx(saved_bytes(module, 2), rel=0.1)


# Memory.


@pytest.mark.parametrize("kind", ["full", "lora", "*.attn1.*"])
@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("float32", 1), ("bfloat16", 2)])
def test_a_learner_s_memory_is_what_a_real_one_holds(tmp_path: Path, kind: str, dtype: str, stage: int) -> None:
    choice = {"train": kind} if kind in ("full", "lora") else {"trainable": kind}
    config = tiny_config(**choice, zero_stage=stage)
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    model = tiny_model(tmp_path / "model")
    learner = Learner(model, config, tmp_path / "run")
    assert learner.work(MemoryExchange()) is not None
    planned, _ = learner_bytes(config, folder_sizes(model.path), 1)
    module = learner.engine.module
    held = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert planned["weights"] == held
    assert planned["reference"] == (0 if kind == "lora" else held)
    state = learner.engine.optimizer_state()
    padding = 64  # DeepSpeed pads its flat shards
    masters = sum(tensor.nbytes for name, tensor in state.items() if name.endswith("master"))
    moments = sum(tensor.nbytes for name, tensor in state.items() if "exp_avg" in name)
    assert 0 <= masters - planned["master weights"] <= padding
    assert 0 <= moments - planned["moments"] <= 2 * padding
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    assert planned["gradients"] == trained
    learner.close()


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"), [(0, 1, 1, 1), (1, 1, 1, 8), (2, 1, 8, 8), (3, 8, 8, 8)]
)
def test_zero_stages_split_what_the_engine_s_table_says(
    stage: int, weights: int, gradients: int, optimizer: int
) -> None:
    sizes = family_sizes("1.5-5b-i2v")  # no position table
    flags = FULL | {"learner.zero_stage": stage, "model.dtype": "float32"}
    held, phases = learner_bytes(load_config(None, flags), sizes, 1000)
    p = sizes.transformer_parameters
    assert held["weights"] == pytest.approx(4 * p / weights, abs=8)
    assert held["reference"] == 4 * p
    assert held["gradients"] == pytest.approx(4 * p / gradients, abs=8)
    assert held["moments"] == pytest.approx(8 * p / optimizer, abs=8)
    assert held["master weights"] == (0 if stage == 0 else pytest.approx(4 * p / 8, abs=8))
    assert phases["optimizer step"] == (0 if stage == 0 else pytest.approx(4 * p / 8, abs=8))


def test_one_rank_without_zero_adds_gradients_up_in_float32() -> None:
    sizes = family_sizes("2b")
    p = sizes.transformer_parameters
    for half, copies in (("bfloat16", 4 * p), ("float32", 0)):
        alone = load_config(None, FULL | {"learner.zero_stage": 0, "cluster.learner.count": 1, "model.dtype": half})
        held, phases = learner_bytes(alone, sizes, 1000)
        assert (held["gradients"], held["master weights"], held["moments"]) == (4 * p, copies, 8 * p)
        assert (held["exchange buffers"], phases["optimizer step"]) == (0, 0)


@pytest.mark.parametrize("stage", [0, 2])
def test_an_offloaded_optimizer_is_in_host_memory(stage: int) -> None:
    sizes, ranks = family_sizes("2b"), 8 if stage else 1
    p = sizes.transformer_parameters
    flags = FULL | {"learner.zero_stage": stage, "cluster.learner.count": ranks, "learner.offload_optimizer": True}
    held, phases = learner_bytes(load_config(None, flags), sizes, 1000)
    assert not {"master weights", "moments"} & held.keys()
    assert held["gradients"] == (2 * p / 8 if stage else 0)
    assert phases["optimizer step"] == 0
    assert host_bytes(load_config(None, flags), sizes) == 16 * p / ranks
    small = load_config(None, flags | {"learner.optimizer": "adamw_8bit"})
    assert host_bytes(small, sizes) == pytest.approx((8 + 2 + 1 / 32) * p / ranks)
    assert host_bytes(load_config(None, FULL), sizes) == 0


def test_the_reference_has_three_places() -> None:
    sizes, unit = family_sizes("1.5-5b-i2v"), 2 * 1000 * 3072 * 2  # no position table; S d b of two clips
    p, found = sizes.transformer_parameters, {}
    for place in ("whole", "sharded", "host"):
        config = load_config(None, FULL | {"learner.reference": place})
        held, phases = learner_bytes(config, sizes, 1000)
        found[place] = (held["reference"], phases["reference pass"], host_bytes(config, sizes))
    assert found == {
        "whole": (2 * p, FORWARD * unit, 0),
        "sharded": (2 * p / 8, FORWARD * unit, 0),
        "host": (0, FORWARD * unit + 2 * p, 2 * p),
    }


def test_supervised_fine_tuning_holds_no_reference_and_one_clip_of_a_group() -> None:
    sft = {"algorithm.name": "sft", "learner.gradient_checkpointing": "off"}
    sizes, unit = family_sizes("2b"), 1000 * 1920 * 2
    for place in ("whole", "host"):
        config = load_config(None, FULL | sft | {"learner.reference": place})
        held, phases = learner_bytes(config, sizes, 1000)
        assert (held["reference"], phases["reference pass"], host_bytes(config, sizes)) == (0, 0, 0)
        assert phases["activations"] == unit * (30 * 23 + 4 + BACKWARD) + 30 * 1000 * 4 * 5 * 30
    adapter = 2 * sizes.adapter_parameters(LoraConfig())
    weights = [
        learner_bytes(load_config(None, FULL | flags | {"learner.train": "lora"}), sizes, 1000)[0]["weights"]
        for flags in (sft, {})
    ]
    assert weights[1] - weights[0] == adapter


def test_supervised_fine_tuning_takes_a_third_of_the_passes_and_keeps_less() -> None:
    """1 forward + 2 backward of one clip; DPO has 2 forward + 2 backward of two: 3 / 8, for matrices and attention."""
    gapo, sft = made(check=False, **OFF), made(check=False, algorithm__name="sft", **OFF)
    assert sft.pace.step / gapo.pace.step == pytest.approx(3 / 8)
    p = family_sizes("5b-i2v").transformer_parameters
    assert gapo.disk.checkpoints - sft.disk.checkpoints == 4 * 2 * p
    assert sft.disk.blobs < gapo.disk.blobs


@pytest.mark.parametrize("recompute", ["off", "full"])
@pytest.mark.parametrize(("frames", "height", "width"), [(49, 480, 720), (17, 240, 368)])
def test_a_rewards_gradient_goes_through_the_decoder(
    recompute: Recompute, frames: int, height: int, width: int
) -> None:
    """The plan's VAE backward against the bytes that autograd saves to decode a clip, on a device without memory."""
    sizes = family_sizes("1.5-5b-i2v")
    size = {"model.frames": frames, "model.height": height, "model.width": width, "algorithm.name": "refl"}
    stated = {
        kind: _vae_backward_bytes(load_config(None, FULL | size | {"learner.gradient_checkpointing": kind}), sizes)
        for kind in ("off", "full")
    }
    with torch.device("meta"):
        vae: Any = AutoencoderKLCogVideoX.from_config(dict(sizes.vae))
    vae = vae.to(torch.bfloat16).requires_grad_(False)
    if recompute == "full":
        vae.enable_gradient_checkpointing()
    latents = torch.empty((1, *sizes.latent_shape(frames, height, width)), device="meta", dtype=torch.bfloat16)
    found = kept_bytes(lambda: decode_latents(vae, latents.requires_grad_()))
    recomputed = stated["off"] * 9 / frames if recompute == "full" else 0.0  # nine frames at once
    assert stated[recompute] - recomputed == pytest.approx(found, rel=0.02)


def test_a_rewards_gradient_needs_decoder_rewards_and_no_reference() -> None:
    flags = {"algorithm.name": "vader", "algorithm.gradient_steps": 2, "sampler.guidance": 6.0}
    sizes = family_sizes("5b-i2v")
    config = load_config(None, FULL | flags)
    held, phases = learner_bytes(config, sizes, 1000)
    assert held["reference"] == phases["reference pass"] == 0
    assert held["VAE, rewards"] > 2 * sizes.vae_parameters
    once = load_config(None, FULL | flags | {"algorithm.gradient_steps": 1})
    less = learner_bytes(once, sizes, 1000)[1]["activations"]
    assert phases["activations"] - less == sizes.saved_bytes(2, 1000, 2, None, "full", 0)  # 2: guidance
    assert made(check=False, algorithm__name="vader").pace.step > made(check=False, algorithm__name="sft").pace.step


def test_bfloat16_runs_stage_0_of_several_ranks_as_stage_1() -> None:
    sizes = family_sizes("2b")
    at = [learner_bytes(load_config(None, FULL | {"learner.zero_stage": stage}), sizes, 1000) for stage in (0, 1)]
    assert at[0] == at[1]


def test_a_micro_batch_is_one_forward_of_winners_and_losers() -> None:
    sizes, unit = family_sizes("2b"), 1000 * 1920 * 2
    flags = FULL | {"learner.batch_size": 32, "learner.micro_batch": 2, "learner.gradient_checkpointing": "off"}
    _, phases = learner_bytes(load_config(None, flags), sizes, 1000)
    statistics = 30 * 4 * 1000 * 4 * 5 * 30
    assert phases["activations"] == 4 * unit * (30 * 23 + 4 + BACKWARD) + statistics
    _, phases = learner_bytes(load_config(None, flags | {"learner.gradient_checkpointing": "full"}), sizes, 1000)
    assert phases["activations"] == 4 * unit * (30 + 4 + 23 + BACKWARD) + statistics // 30


def test_a_sampler_decodes_and_denoises_its_micro_batch() -> None:
    sizes = family_sizes("2b")
    held, phases = sampler_bytes(load_config(None, FULL | {"sampler.micro_batch": 3}), sizes, 1000)
    assert held["T5"] == 2 * 4_762_310_656
    assert phases["denoising"] == FORWARD * 3 * 2 * 1000 * 1920 * 2  # with guidance, two captions
    assert phases["VAE decode"] == DECODE * 3 * 9 * 480 * 720 * 256 * 2
    _, plain = sampler_bytes(load_config(None, FULL | {"sampler.guidance": 1.0}), sizes, 1000)
    assert plain["denoising"] == FORWARD * 1000 * 1920 * 2


def test_tiles_and_offloading_take_less() -> None:
    """A tile of CogVideoX's VAE is 240 x 360 pixels, a quarter of its frame."""
    sizes = family_sizes("2b")
    _, whole = sampler_bytes(load_config(None, FULL), sizes, 1000)
    held, tiled = sampler_bytes(load_config(None, FULL | {"sampler.vae_tiling": True}), sizes, 1000)
    assert tiled["VAE decode"] == whole["VAE decode"] / 4
    left, phases = sampler_bytes(load_config(None, FULL | {"sampler.offload": True}), sizes, 1000)
    assert left == {"transformer": held["transformer"]}
    assert phases["T5"] == held["T5"]
    assert phases["VAE decode"] == whole["VAE decode"] + held["VAE"]
    assert phases["denoising"] == whole["denoising"]


def test_phases_take_turns_and_serial_mode_holds_all_roles_at_once() -> None:
    apart, together = made("2b"), made("2b", mode="serial", cluster__learner__count=1, learner__train="lora")
    sampler = apart.needs[0]
    assert sampler.total == sum(sampler.resident.values()) + sampler.phases["VAE decode"]
    (process,) = together.needs
    assert process.role == "process"
    assert process.resident["sampler T5"] == sampler.resident["T5"]
    assert process.total == sum(process.resident.values()) + max(process.phases.values())


# Time and disk.


def test_time_is_operations_over_the_assumed_speed() -> None:
    sizes = family_sizes("5b-i2v")
    clip = 100 * sum(sizes.forward_flops(17776)) + sizes.decode_flops((13, 16, 60, 90))
    fast, slow = made(mfu=0.4).pace, made(mfu=0.2).pace
    assert fast.clip == pytest.approx(clip / (312e12 * 0.4))
    assert (slow.clip, slow.step) == pytest.approx((2 * fast.clip, 2 * fast.step))
    assert made(gpu="H100-80GB").pace.clip == pytest.approx(fast.clip * 312 / 989)
    assert made(cluster__sampler__gpus=0.6).pace.clip == pytest.approx(fast.clip / 0.6)
    assert made(learner__gradient_checkpointing="full", learner__train="lora").pace.step < fast.step
    matrices, attention = sizes.forward_flops(17776)
    saved = fast.step - made(learner__gradient_checkpointing="selective").pace.step
    assert saved == pytest.approx(2 * attention / (312e12 * 0.4))  # of one pair on each rank
    assert attention / (matrices + attention) == pytest.approx(0.49, abs=0.01)


@pytest.mark.parametrize(("interval", "guided"), [("0,1", 10), ("0.25,0.75", 5), ("0,0.05", 0), ("0.9,1", 1)])
def test_guidance_takes_two_calls_where_there_is_guidance(interval: str, guided: int) -> None:
    """Ten steps are at t = 99, 199, ... 999 of 1000."""
    flags = {"sampler.steps": 10, "sampler.guidance_interval": interval}
    assert guided_steps(load_config(None, FULL | flags)) == guided
    assert guided_steps(load_config(None, FULL | flags | {"sampler.guidance": 1.0})) == 0


def test_a_run_on_clips_that_exist_samples_none() -> None:
    drafted = made(check=False, pairs="pairs.jsonl", sampler__candidates=2)
    assert drafted.pace.samplers_needed == 0
    assert drafted.pace.total(10, clips_per_step(drafted.config)) == pytest.approx(10 * drafted.pace.step)


def test_samplers_that_keep_the_learner_busy() -> None:
    pace = made().pace
    assert pace.samplers_needed is not None
    assert pace.samplers_needed - 1 < 32 * pace.clip / pace.step <= pace.samplers_needed
    assert pace.total(10, 32) == pytest.approx(10 * 32 * pace.clip / 8)
    assert made(cluster__sampler__count=1000).pace.total(10, 32) == pytest.approx(10 * pace.step)


def test_disk_holds_checkpoints_versions_and_the_blobs_of_groups_and_pairs() -> None:
    p, keep = family_sizes("5b-i2v").transformer_parameters, {"learner__keep_checkpoints": 3}
    assert made(check=False, **keep).disk.checkpoints == 4 * (2 * 2 * p + 12 * p)
    assert made(exchange__max_lag=3).disk.versions == 2 * p * (1 + 5)
    assert made(steps=2, exchange__max_lag=3).disk.versions == 2 * p * (1 + 2)
    assert made(learner__train="lora").disk.push == 2 * family_sizes("5b-i2v").adapter_parameters(LoraConfig())
    few, many = (made(exchange__pipeline_depth=depth).disk.blobs for depth in (8, 16))
    assert many - few == 8 * made().disk.group


# Refusals.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"learner__gradient_checkpointing": "off"},
            ["learner: ", "of 80", 'learner.gradient_checkpointing = "full" (50 GB)'],
        ),
        ({"cluster__learner__count": 1}, ["learner: ", 'learner.train = "lora"']),
        (
            {"learner__micro_batch": 8, "cluster__learner__count": 1, "learner__train": "lora"},
            ["learner.micro_batch = 1"],
        ),
        ({"model__dtype": "float32"}, ["sampler: 82 GB", 'model.dtype = "bfloat16" (41 GB)']),
        (
            {"gpu": "H200-141GB", "model__dtype": "float32", "learner__zero_stage": 0},
            ["learner: ", "of 141", "learner.zero_stage = 3", 'model.dtype = "bfloat16"'],
        ),
        ({"sampler__micro_batch": 4}, ["sampler: ", "of 80", "sampler.micro_batch = 1 (41 GB)"]),
        ({"cluster__sampler__gpus": 0.4}, ["sampler: 41 GB per GPU of 80 x 0.4", "cluster.sampler.gpus"]),
        ({"gpu": "RTX4090-24GB"}, ["sampler: 41 GB per GPU of 24 (RTX4090-24GB)"]),
        ({"mode": "serial"}, ["process: ", 'learner.train = "lora"']),
        ({"exchange__max_bytes": 10**9}, ["exchange.max_bytes = 1 GB", "learner.checkpoint_every"]),
        ({"learner__batch_size": 12}, ["learner.batch_size = 12: must be divisible by 8 ranks"]),
        ({"model__device": "cpu"}, ["model.device = 'cpu'", "cuda:0"]),
        ({"simulate": True}, ["simulate"]),
        ({"mfu": 0.0}, ["--mfu 0.0"]),
        ({"mfu": 1.5}, ["--mfu 1.5"]),
        ({"model__frames": 50}, ["model.frames = 50", "8k+1"]),
        ({"model__height": 256, "model__width": 256}, ["learned positions", "480x720"]),
        ({"learner__train": "lora", "learner__lora__targets": "nothing"}, ["learner.lora.targets = ['nothing']"]),
    ],
)
def test_what_cannot_fit_is_refused_in_one_line_that_names_the_knob(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**changes)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_refusal_names_only_changes_that_help_and_what_they_come_to() -> None:
    with pytest.raises(ConfigError) as caught:
        made(learner__gradient_checkpointing="off")
    assert "micro_batch" not in str(caught.value)  # already 1
    total = made().needs[-1].total
    assert f'learner.gradient_checkpointing = "full" ({total / GIGA:.0f} GB)' in str(caught.value)


def test_a_refusal_names_no_change_that_the_rest_forbids() -> None:
    for stage, named in ((2, True), (3, False)):
        with pytest.raises(ConfigError) as caught:
            made(
                gpu="RTX4090-24GB",
                learner__gradient_checkpointing="off",
                learner__zero_stage=stage,
                sampler__offload=True,
                sampler__vae_tiling=True,
            )
        assert "learner: " in str(caught.value)
        assert ('= "selective"' in str(caught.value)) == named


# The command.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--family", "7b"], "--family 7b: allowed are 2b, 5b-i2v, 1.5-5b-i2v"),
        (["--gpu", "T4"], "--gpu T4: allowed are A800-80GB"),
        (["--learner-gpu", "T4"], "--learner-gpu T4: allowed are"),
        (["--family", "5b-i2v", "--algorithm.betta", "1"], "did you mean algorithm.beta?"),
        (
            [],
            "/models/CogVideoX-5b-I2V/transformer/config.json: No such file or directory; plan a published model with",
        ),
        (["--family", "5b-i2v", "--learner-gpu", "RTX4090-24GB"], "learner: 59 GB per GPU of 24"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ONLINE), *words]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert said in streams.err


def test_a_folder_s_own_configs_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_pipeline(tmp_path / "tiny", **TEXT_TO_VIDEO)
    assert main(["plan", str(ONLINE), "--model.path", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("tiny: ")
    (folder / "vae" / "config.json").write_text("[")
    assert main(["plan", str(ONLINE), "--model.path", str(folder)]) == 2
    assert "not valid JSON" in capsys.readouterr().err


def test_the_plan_needs_no_torch() -> None:
    code = (
        "import sys\nfrom deploy.cli.main import main\n"
        "assert main(['plan', 'deploy/launch/configs/a800-online.toml', '--family', '5b-i2v']) == 0\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stderr) == []
    assert "359    samplers keep the learner busy" in done.stdout


def test_the_bound_of_kept_candidates_is_given_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ONLINE), "--family", "5b-i2v"]
    assert main(words) == 0
    assert "kept candidates" not in capsys.readouterr().out
    assert main([*words, "--keep-candidates-bytes", "1_000_000_000_000"]) == 0
    out = capsys.readouterr().out
    group = float(next(line for line in out.splitlines() if line.startswith("hub traffic")).split()[2])
    found = next(line.split() for line in out.splitlines() if "kept candidates at most" in line)
    assert found[0] == "1000.0"
    assert int(found[5]) == pytest.approx(1000 / group, rel=0.05)
