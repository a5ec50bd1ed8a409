"""`douga init`: a configuration that fits a model, and works at once."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.prompts.heldout import heldout_prompts
from actors.prompts.source import open_prompts
from common.config import load_config
from common.models.cogvideox import open_model
from common.models.usual import usual_settings
from deploy.cli.main import main
from deploy.planning.memory import GPUS, Gpu, gpu_of
from deploy.planning.starter import write_starter
from tests.support.tiny import FAMILIES, tiny_pipeline


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_pipeline(folder / name, **family) for name, family in FAMILIES.items()}


CLIPS = {"2B": (9, 48, 64, 8, False), "5B-I2V": (9, 48, 64, 8, True), "1.5-5B-I2V": (9, 96, 96, 16, True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_fits_the_model_and_runs(
    family: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--model", str(models[family])]) == 0
    config = load_config(tmp_path / "mine" / "run.toml")
    size = config.model
    *clip, takes_image = CLIPS[family]
    assert [size.frames, size.height, size.width, size.fps] == clip
    assert (size.dtype, size.device, config.learner.train, config.mode) == ("float32", "cpu", "lora", "serial")
    heldout = heldout_prompts(open_prompts(config.prompts, 0, takes_image), config)
    assert len({prompt.text for prompt in [*heldout.comparison, *heldout.probes]}) == 12
    assert (tmp_path / "mine" / "pictures").exists() is takes_image
    fewer = ["--steps", "1", "--sampler.steps", "2", "--sampler.candidates", "2", "--learner.batch-size", "1"]
    fewer += ["--evaluation.prompts", "2", "--guardrails.prompts", "0", "--learner.checkpoint-every", "1"]
    monkeypatch.chdir("/")  # all paths in it are absolute
    assert main(["run", str(tmp_path / "mine" / "run.toml"), *fewer]) == 0
    assert (tmp_path / "mine" / "runs" / "mine" / "report.html").is_file()


def test_nothing_is_overwritten(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text("mine")
    assert main(["init", str(tmp_path), "--model", str(models["2B"])]) == 2
    assert f"{tmp_path / 'prompts.jsonl'}: exists already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "nowhere"], "model.path = 'nowhere': no folder nowhere"),
        (["--model", "toon"], "--model toon: the embedded model has a configuration"),
        (["--model", "nowhere", "--gpu", "V100"], "--gpu V100: allowed are A800-80GB"),
        ([], "the following arguments are required: --model"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "mine"), *words]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("stored", "written"), [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32")]
)
def test_the_dtype_is_the_checkpoints(stored: str, written: str, tmp_path: Path) -> None:
    folder = tiny_pipeline(tmp_path / "model")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(file).items()}, file)
    assert usual_settings(open_model(folder), "cuda:0").dtype == written
    file.write_bytes(b"no weights")
    assert main(["init", str(tmp_path / "mine"), "--model", str(folder)]) == 2


def test_the_scheduler_is_the_one_that_diffusers_would_load(tmp_path: Path) -> None:
    folder = tiny_pipeline(tmp_path / "model")
    for name, scheduler in (("scheduler/scheduler_config.json", "dpm"), ("model_index.json", "ddim")):
        file = folder / name
        file.write_text(file.read_text().replace("CogVideoXDPMScheduler", "CogVideoXDDIMScheduler"))
        assert usual_settings(open_model(folder), "cpu").scheduler == scheduler


def test_memory_settings_are_those_of_the_plan(models: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(models["5B-I2V"])
    usual = usual_settings(model, "cuda:0")
    assert write_starter(tmp_path / "large", model, usual, GPUS["A800-80GB"]) == []
    large = load_config(tmp_path / "large" / "run.toml")
    assert (large.learner.gradient_checkpointing, large.sampler.offload, large.model.device) == ("off", False, "cuda:0")
    assert main(["plan", str(tmp_path / "large" / "run.toml"), "--gpu", "A800-80GB"]) == 0
    small = Gpu("none", 0.1, 100)
    (line,) = write_starter(tmp_path / "small", model, usual, small)
    assert line.startswith("does not fit one none: ")
    little = load_config(tmp_path / "small" / "run.toml")
    assert (little.learner.gradient_checkpointing, little.sampler.offload) == ("full", True)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090-24GB"),
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA L40S", "L40S-48GB"),
        *((gpu, gpu) for gpu in GPUS),
        ("A100", "A100-80GB"),
        ("a100", "A100-80GB"),
        ("a100 40gb", "A100-40GB"),
        ("A100-80G", "A100-80GB"),
        ("4090", "RTX4090-24GB"),
        ("rtx-4090", "RTX4090-24GB"),
        ("Tesla T4", None),
        ("H20", None),
        ("NVIDIA RTX A1000", None),
        ("L40", None),
        ("H100-96GB", None),
        ("80GB", None),
        ("", None),
        ("B200:180:2250", "B200"),
        ("B200:0:2250", None),
        ("B200:-1:2", None),
        ("B200:180", None),
    ],
)
def test_a_gpu_by_its_obvious_names(words: str, name: str | None) -> None:
    found = gpu_of(words)
    assert (found.name if found else None) == name


def test_a_gpu_that_is_not_listed() -> None:
    assert gpu_of("B200:180:2250") == Gpu("B200", 180, 2250)


def test_odd_folder_names_give_a_valid_file(models: dict[str, Path], tmp_path: Path) -> None:
    for name in ('my "first" run', "..été", "a'b", "a\nb"):
        assert main(["init", str(tmp_path / name), "--model", str(models["2B"])]) == 0
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", load_config(tmp_path / name / "run.toml").name)


def test_the_next_command_can_be_pasted(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my first run"
    assert main(["init", str(folder), "--model", str(models["2B"])]) == 0
    pasted = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert pasted == ["next:", "douga", "run", str(folder / "run.toml")]
    assert f"#   douga run '{folder / 'run.toml'}'\n" in (folder / "run.toml").read_text("utf-8")
