"""A model folder is whole, or it is refused in one line: deletions, truncations and edits of a tiny pipeline."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from common.data.video import decode_clip
from common.errors import ConfigError
from common.models.cogvideox import SCHEDULERS, build_tokenizer, open_model
from common.models.fingerprint import model_folder, model_parts
from deploy.cli.main import main
from tests.support.tiny import FRAMES, HEIGHT, WIDTH, tiny_pipeline
from tests.support.torn import without

WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PARTS = [*WEIGHTS]
EIGHT_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    own = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in own.items() if value is not None}))


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        open_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def shard(part: Path, stem: str) -> Path:
    """Split the part's weights into two files. Returns the index."""
    single = part / f"{stem}.safetensors"
    tensors = load_file(single)
    names = sorted(tensors)
    places = {name: f"{stem}-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, part / file, {"format": "pt"})
    single.unlink()
    index = part / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


# Tensors.


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("text_encoder", "shared.weight"),
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("transformer", "transformer_blocks.1.ff.net.2.bias"),
        ("vae", "encoder.conv_in.conv.weight"),
    ],
)
def test_a_missing_tensor_is_named(folder: Path, part: str, name: str) -> None:
    without(folder / part, name)
    assert refusal(folder).startswith(f"{folder / part}: not a complete ")
    assert refusal(folder).endswith(f"weights missing: {name}")


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_too_many_is_named(folder: Path, part: str) -> None:
    rewrite(folder / part / WEIGHTS[part], lambda own: own.update({"lora_A.weight": torch.zeros(2, 2)}))
    assert refusal(folder).endswith("of this config.json has not: lora_A.weight")


@pytest.mark.parametrize("part", PARTS)
def test_another_shape_is_named(folder: Path, part: str) -> None:
    def widen(own: dict[str, torch.Tensor]) -> None:
        name = min(own)
        own[name] = torch.cat([own[name], own[name]]).contiguous()

    rewrite(folder / part / WEIGHTS[part], widen)
    assert "config.json and weights contradict each other: " in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_quantised_weights_are_refused(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder / "vae" / WEIGHTS["vae"], lambda own: own.update({min(own): own[min(own)].to(dtype)}))
    assert "has dtype " in refusal(folder)
    assert refusal(folder).endswith("; allowed are F64, F32, F16, BF16")


def test_mixed_floats_become_the_models_dtype(folder: Path) -> None:
    """T5 saved in float16 keeps some layers in float32."""
    rewrite(
        folder / "text_encoder" / WEIGHTS["text_encoder"], lambda own: own.update({min(own): own[min(own)].bfloat16()})
    )
    encoder = open_model(folder).load_text_encoder("float32", "cpu")
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_finite_are_named(folder: Path, part: str, value: float) -> None:
    rewrite(folder / part / WEIGHTS[part], lambda own: own[max(own)].view(-1)[:1].fill_(value))
    with pytest.raises(ConfigError, match=r"NaN or infinite$"):
        getattr(open_model(folder), f"load_{part}")("float32", "cpu")


@pytest.mark.parametrize("part", PARTS)
def test_zeros_of_an_interrupted_download_are_named(folder: Path, part: str) -> None:
    """The file has its size and its header, and nothing behind the middle."""
    file = folder / part / WEIGHTS[part]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(ConfigError, match=r"is all zeros, as in a file that was not written whole; download it again$"):
        getattr(open_model(folder), f"load_{part}")("float32", "cpu")


def test_either_name_of_tied_weights_will_do(folder: Path, whole: Path) -> None:
    """T5's embedding is saved as `shared.weight` or as `encoder.embed_tokens.weight`."""
    rewrite(
        folder / "text_encoder" / WEIGHTS["text_encoder"],
        lambda own: own.update({"encoder.embed_tokens.weight": own.pop("shared.weight")}),
    )
    ours, theirs = (open_model(one).load_text_encoder("float32", "cpu").state_dict() for one in (folder, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


# Files.


@pytest.mark.parametrize("part", PARTS)
def test_shards_load_as_one_file_does(folder: Path, whole: Path, part: str) -> None:
    shard(folder / part, WEIGHTS[part].removesuffix(".safetensors"))
    ours, theirs = (getattr(open_model(one), f"load_{part}")("float32", "cpu").state_dict() for one in (folder, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("part", PARTS)
def test_two_checkpoints_in_one_part(folder: Path, whole: Path, part: str) -> None:
    stem = WEIGHTS[part].removesuffix(".safetensors")
    for other in (f"{stem}.fp16.safetensors", "old.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin"):
        (folder / part / other).write_bytes((whole / part / WEIGHTS[part]).read_bytes())
        assert f"two checkpoints: {WEIGHTS[part]} and {other}; keep one" in refusal(folder)
        (folder / part / other).unlink()
    index = shard(folder / part, stem)
    shutil.copyfile(whole / part / WEIGHTS[part], folder / part / WEIGHTS[part])
    assert f"two checkpoints: {WEIGHTS[part]} and " in refusal(folder)
    (folder / part / WEIGHTS[part]).unlink()
    (folder / part / f"{stem}-00001-of-00005.safetensors").write_bytes(b"of an older save")
    assert f"two checkpoints: {index.name} and {stem}-00001-of-00005.safetensors" in refusal(folder)


def test_an_index_must_agree_with_its_files(folder: Path) -> None:
    index = shard(folder / "transformer", "diffusion_pytorch_model")
    places = json.loads(index.read_text())["weight_map"]
    name = min(places)
    edit(index, weight_map=places | {name: "elsewhere.safetensors"})
    assert "names files that are not there: elsewhere.safetensors" in refusal(folder)
    edit(index, weight_map={key: place for key, place in places.items() if key != name})
    assert f"the index and this file disagree on {name}" in refusal(folder)
    for wrong in ({}, [], "x", {name: 3}, {name: "../vae/diffusion_pytorch_model.safetensors"}):
        edit(index, weight_map=wrong)
        assert "weight_map must name a file in this folder" in refusal(folder)


@pytest.mark.parametrize("part", PARTS)
def test_pickled_weights_are_not_loaded(folder: Path, part: str) -> None:
    """The message says how to convert them; the file is not even opened."""
    file = folder / part / WEIGHTS[part]
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    file.rename(file.with_name(name))
    said = refusal(folder)
    assert f"only pickled weights ({name})" in said
    assert "DiffusionPipeline.from_pretrained(DIR).save_pretrained(NEW_DIR)" in said


def test_a_variant_alone_and_a_pointer(folder: Path) -> None:
    file = folder / "vae" / WEIGHTS["vae"]
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert f"no {file.name} in it; rename diffusion_pytorch_model.fp16.safetensors" in refusal(folder)
    file.with_name("diffusion_pytorch_model.fp16.safetensors").unlink()
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "cannot be loaded: a Git LFS pointer, not the file itself; run: git lfs pull" in refusal(folder)


@pytest.mark.parametrize("name", ["vae/config.json", "tokenizer/tokenizer.json", "tokenizer/spiece.model"])
def test_a_pointer_in_place_of_a_small_file(folder: Path, name: str) -> None:
    file = folder / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert refusal(folder) == f"{file}: cannot be loaded: a Git LFS pointer, not the file itself; run: git lfs pull"


def test_a_link_to_nowhere_and_a_pipe(folder: Path) -> None:
    file = folder / "vae" / WEIGHTS["vae"]
    file.unlink()
    file.symlink_to("../../blobs/0")
    assert refusal(folder) == f"{file}: a link to a file that is not there"
    config = folder / "vae" / "config.json"
    config.unlink()
    assert refusal(folder).startswith(f"{config}: missing; ")
    os.mkfifo(config)
    assert refusal(folder).startswith(f"{config}: ")


# Configs.


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        (
            "transformer/config.json",
            {"attention_head_dim": 24},
            "attention_head_dim = 24: rotary positions need a mult",
        ),
        ("transformer/config.json", {"attention_head_dim": 32}, "config.json and weights contradict each other"),
        ("transformer/config.json", {"num_layers": 3}, "weights missing: transformer_blocks.2."),
        ("transformer/config.json", {"num_layers": 1}, "has not: transformer_blocks.1."),
        ("transformer/config.json", {"num_layers": "2"}, "num_layers = '2': does not fit; the default is 30"),
        ("transformer/config.json", {"patch_size": 0}, "patch_size = 0: does not fit"),
        ("transformer/config.json", {"norm_eps": 10**400}, "norm_eps = 1000"),
        ("transformer/config.json", {"num_layers": 10**9}, "num_layers = 1000000000: at most 1000 can be built"),
        ("text_encoder/config.json", {"num_layers": 10**9}, "num_layers = 1000000000: at most 1000 can be built"),
        ("transformer/config.json", {"text_embed_dim": 64}, "text_embed_dim = 64, but the other parts need 32"),
        ("transformer/config.json", {"out_channels": 8}, "out_channels = 8, but the other parts need 4"),
        ("transformer/config.json", {"activation_fn": "none"}, "no model can be built of it"),
        ("transformer/config.json", {"_class_name": "WanTransformer3DModel"}, "must be a CogVideoXTransformer3DModel"),
        ("vae/config.json", {"temporal_compression_ratio": 8}, "temporal_compression_ratio = 4, but the other parts"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "scaling_factor = nan: does not fit"),
        ("vae/config.json", {"block_out_channels": []}, "block_out_channels = []: does not fit"),
        ("vae/config.json", {"norm_num_groups": 3}, "no model can be built of it"),
        ("text_encoder/config.json", {"model_type": "umt5"}, "model_type is 'umt5', must be 't5'"),
        ("text_encoder/config.json", {"d_kv": 8}, "config.json and weights contradict each other"),
        ("text_encoder/config.json", {"vocab_size": 16}, "config.json and weights contradict each other"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"}, "is a CLIPTokenizer, must be one of"),
        ("model_index.json", {"_class_name": "CogVideoXPipeline"}, "but the other parts need 'CogVideoXImageToVideoP"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "vae is 'AutoencoderKL', must be one of"),
        ("model_index.json", {"text_encoder": None}, "text_encoder is None"),
        (
            "model_index.json",
            {"vae": ["mine", "AutoencoderKLCogVideoX"]},
            "vae is code of 'mine', which douga does not",
        ),
        (
            "text_encoder/config.json",
            {"quantization_config": EIGHT_BITS},
            "quantization_config (bitsandbytes): take the",
        ),
        (
            "transformer/config.json",
            {"quantization_config": EIGHT_BITS},
            "quantization_config (bitsandbytes): take the",
        ),
        (
            "text_encoder/config.json",
            {"pad_token_id": 2},
            "pad_token_id = 0, but the text encoder has 2: the tokenizer",
        ),
        (
            "text_encoder/config.json",
            {"eos_token_id": 2},
            "eos_token_id = 1, but the text encoder has 2: the tokenizer",
        ),
    ],
)
def test_a_config_that_contradicts(folder: Path, file: str, values: dict[str, Any], said: str) -> None:
    edit(folder / file, **values)
    assert said in refusal(folder)


def test_a_tokenizer_with_more_tokens_than_embeddings(folder: Path) -> None:
    build_tokenizer([f"word{number}" for number in range(40)], 12).save_pretrained(folder / "tokenizer")
    assert refusal(folder) == f"{folder / 'tokenizer'}: has 43 tokens, but the text encoder embeds only 17"


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    """transformers makes one of special tokens only, so every word is unknown."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert "no vocabulary in it; allowed are tokenizer.json and spiece.model" in refusal(folder)


# Schedulers.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"_class_name": "EulerDiscreteScheduler"},
            "is a EulerDiscreteScheduler, must be one of CogVideoXDPMScheduler",
        ),
        ({"prediction_type": "epsilon"}, "prediction_type = 'epsilon': not implemented; allowed: 'v_prediction'"),
        ({"prediction_type": "sample"}, "prediction_type = 'sample': not implemented"),
        ({"timestep_spacing": "karras"}, "timestep_spacing = 'karras': not implemented; allowed: 'trailing'"),
        ({"steps_offset": 1}, "steps_offset = 1: not implemented; allowed: 0"),
        ({"num_train_timesteps": 500}, "num_train_timesteps = 500: not implemented; allowed: 1000"),
        ({"thresholding": True}, "thresholding = True: not implemented"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas = True: not implemented"),
        ({"flow_shift": 3.0}, "flow_shift = 3.0: not implemented"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'; allowed are linear"),
        ({"beta_start": "0.1"}, "beta_start = '0.1': does not fit"),
        ({"beta_end": 1.5}, "the betas make no noise schedule"),
        ({"trained_betas": [0.1, 0.2]}, "the betas make no noise schedule"),
        ({"trained_betas": "x"}, "no noise schedule can be made of it"),
        ({"snr_shift_scale": -1.0}, "snr_shift_scale = -1.0: does not fit"),
    ],
)
def test_a_schedule_that_is_not_implemented(folder: Path, values: dict[str, Any], said: str) -> None:
    edit(folder / SCHEDULER, **values)
    assert said in refusal(folder)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(
    "values",
    [
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "leading", "rescale_betas_zero_snr": False},
        {"set_alpha_to_one": False},
        {"clip_sample": True, "clip_sample_range": 0.01, "thresholding": False},
        {"trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist()},
        {"beta_schedule": "squaredcos_cap_v2", "snr_shift_scale": 3.0},
    ],
)
def test_a_schedule_that_is_implemented_is_diffusers_own(folder: Path, values: dict[str, Any], kind: str) -> None:
    """diffusers' CogVideoX schedulers clip no sample either."""
    edit(folder / SCHEDULER, **values)
    ours = open_model(folder).make_scheduler(kind)  # type: ignore[arg-type]
    theirs = {"dpm": CogVideoXDPMScheduler, "ddim": CogVideoXDDIMScheduler}[kind].from_pretrained(folder / "scheduler")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert torch.equal(ours.final_alpha_cumprod, theirs.final_alpha_cumprod)


# Places.


def test_a_hub_id_is_its_snapshot_in_the_cache(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants  # noqa: PLC0415

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no folder me/mine, nor a snapshot .* hf download me/mine; allowed"):
        model_folder("me/mine")
    repository, revision = tmp_path / "hub" / "models--me--mine", "0" * 40
    shutil.copytree(whole, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert open_model("me/mine").path == repository / "snapshots" / revision
    assert model_parts("me/mine") == model_parts(whole)
    shutil.copytree(whole, tmp_path / "me" / "mine")
    assert model_folder("me/mine") == Path("me/mine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("device", ["cuda:0", "cuda", "cpux", "mps", "meta:x"])
def test_a_device_that_is_not_there(whole: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.device = '{device}': .*; allowed here: cpu") as error:
        open_model(whole).load_vae("float32", device)
    assert "\n" not in str(error.value)


# Fuzz.


def damaged(folder: Path, draw: random.Random) -> str:
    """Damage one file of the folder. Returns what was done."""
    file = draw.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    content = file.read_bytes()
    kind = draw.choice(("delete", "truncate", "empty", "flip", "key", "value", "folder", "append"))
    if kind == "truncate":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "flip":
        place = draw.randrange(min(len(content), 4096))
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :])
    elif kind == "append":
        file.write_bytes(content + draw.randbytes(9))
    elif kind in ("key", "value") and file.suffix == ".json":
        own = json.loads(content)
        key = draw.choice(sorted(own))
        if kind == "key":
            del own[key]
        else:
            own[key] = draw.choice((None, 0, -1, 2.5, 10**9, "x", [], {}, [1], True, "NaN"))
        file.write_text(json.dumps(own))
        return f"{kind} {file.relative_to(folder)} {key} = {own.get(key)!r}"
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
    return f"{kind} {file.relative_to(folder)}"


@pytest.mark.parametrize("seed", range(int(os.environ.get("DOUGA_FUZZ_CASES", "15"))))
def test_a_damaged_folder_ends_in_one_line_or_in_a_clip(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    what = damaged(folder, random.Random(seed))
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "p.jsonl").write_text('{"image": "a.png", "prompt": "a robot walks"}\n')
    settings = ["--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out"), "--sampler.steps", "1"]
    code = main(["sample", str(folder), *settings])
    said = capsys.readouterr().err
    if code == 0:
        clip = decode_clip((tmp_path / "out" / "0000-0.mp4").read_bytes())
        assert clip.shape == (FRAMES, HEIGHT, WIDTH, 3), what
    else:
        assert (code, said.count("\n"), said[:7]) == (2, 1, "douga: "), (what, said)
