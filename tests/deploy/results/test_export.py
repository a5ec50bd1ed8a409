"""`douga export`: diffusers with the exported weights samples the same clips as the run's sampler."""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file

from actors.sampler import Sampler
from common.config import RunConfig
from common.errors import ConfigError
from common.images import first_frame
from common.models.cogvideox import ModelFolder, open_model
from common.models.lora import adapter_state, inject_lora
from common.toon.prompts import ToonPrompts
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from common.weights.tensors import from_array
from deploy.cli.main import main
from deploy.results import export
from deploy.run_dir import layout
from deploy.runtime import serial
from tests.support.reference import open_pipeline, pipeline_latents
from tests.support.tiny import FAMILIES, HEIGHT, WIDTH, tiny_pipeline
from tests.support.toy import config, rewards

LORA = "pytorch_lora_weights.safetensors"
SEEDS = (31, 32)
PROMPT = ToonPrompts(0)(5)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Run:
    folder: Path
    model: Path

    @property
    def store(self) -> WeightStore:
        return WeightStore(self.folder / "weights")

    def export(self, out: Path, *more: str) -> int:
        return main(["export", str(self.folder), "--out", str(out), *more])

    def ours(self, version: int) -> torch.Tensor:
        """The run's own sampler, holding `version`."""
        sampler = Sampler(open_model(self.model), layout.find_run(str(self.folder))[1])
        sampler.load(*self.store.load(version))
        return latents(sampler)


def latents(sampler: Sampler) -> torch.Tensor:
    group = sampler.sample(PROMPT, sampler.encode(PROMPT), SEEDS, range(len(SEEDS)))
    return torch.stack([from_array(candidate.latents) for candidate in group])


def made(root: Path, **flags: Any) -> Run:
    """A run trained for two steps, with a learning rate that changes the clips."""
    tiny_pipeline(root / "model", num_layers=1)
    settings = {"steps": 2, "evaluation.clips": 0} | flags
    resolved = config(root, **settings)
    serial.run(resolved, rewards())
    return Run(resolved.folder, root / "model")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """alpha / rank is 4, not 1."""
    adapter = {"learner.train": "lora", "learner.lora.rank": 2, "learner.lora.alpha": 8.0}
    return made(tmp_path_factory.mktemp("lora"), **adapter, **{"learner.lr": 0.05})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("full"), **{"learner.lr": 0.01})


def theirs(pipe: Any) -> torch.Tensor:
    image = None if isinstance(pipe, CogVideoXPipeline) else first_frame(PROMPT.image or b"", HEIGHT, WIDTH)
    return pipeline_latents(pipe, image, PROMPT.text, SEEDS, steps=2)


# Parity.


def test_diffusers_with_the_lora_is_the_runs_sampler(lora: Run, tmp_path: Path, capsys: Any) -> None:
    assert lora.export(tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f'pipe = CogVideoXImageToVideoPipeline.from_pretrained("{lora.model}")' in said
    assert f'pipe.load_lora_weights("{tmp_path / "out"}")' in said
    pipe = open_pipeline(lora.model)
    base = theirs(pipe)
    pipe.load_lora_weights(tmp_path / "out")
    expected = lora.ours(2)
    torch.testing.assert_close(theirs(pipe), expected, atol=TOLERANCE, rtol=0)
    assert (expected - base).abs().max() > 100 * TOLERANCE


def random_adapter(model: ModelFolder, settings: RunConfig, folder: Path) -> WeightStore:
    """A store whose version 1 is an adapter that changes the clips."""
    store, draw = WeightStore(folder / "weights"), torch.Generator().manual_seed(0)
    transformer = model.load_transformer("float32", "cpu")
    inject_lora(transformer, settings.learner.lora, seed=0)
    state = {name: 0.1 * torch.randn(t.shape, generator=draw) for name, t in adapter_state(transformer).items()}
    store.publish(TensorStream.of(state), version=1, step=1, pushes=1, kind="adapter", base=0)
    return store


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_with_any_familys_lora(family: str, tmp_path: Path) -> None:
    model = open_model(tiny_pipeline(tmp_path / "model", **FAMILIES[family]))
    settings = config(tmp_path, **{"learner.lora.rank": 2, "learner.lora.alpha": 8.0})
    store = random_adapter(model, settings, tmp_path)
    export.export(settings, store, 1, tmp_path / "out")
    pipe = open_pipeline(model.path)
    base = theirs(pipe)
    pipe.load_lora_weights(tmp_path / "out")
    sampler = Sampler(model, settings)
    sampler.load(*store.load(1))
    torch.testing.assert_close(theirs(pipe), latents(sampler), atol=TOLERANCE, rtol=0)
    assert (theirs(pipe) - base).abs().max() > 100 * TOLERANCE


def test_the_lora_is_right_without_its_metadata(lora: Run, tmp_path: Path) -> None:
    assert lora.export(tmp_path / "out") == 0
    pipe = open_pipeline(lora.model)
    pipe.load_lora_weights(load_file(tmp_path / "out" / LORA))
    torch.testing.assert_close(theirs(pipe), lora.ours(2), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 16.0), (3, 2.0), (4, 4.0)])
def test_tools_that_add_b_a_to_the_weights_are_right(rank: int, alpha: float, tmp_path: Path) -> None:
    """As ComfyUI does: W + B A from the file's tensors alone. diffusers' loader gives the same latents."""
    model = open_model(tiny_pipeline(tmp_path / "model", num_layers=1))
    settings = config(tmp_path, **{"learner.lora.rank": rank, "learner.lora.alpha": alpha})
    store = random_adapter(model, settings, tmp_path)
    export.export(settings, store, 1, tmp_path / "out")
    tensors, plain = load_file(tmp_path / "out" / LORA), open_pipeline(model.path)
    with torch.no_grad():
        for name in (name for name in tensors if name.endswith(".lora_A.weight")):
            layer = plain.transformer.get_submodule(name.removeprefix("transformer.").removesuffix(".lora_A.weight"))
            layer.weight += tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    adapted, sampler = open_pipeline(model.path), Sampler(model, settings)
    adapted.load_lora_weights(tmp_path / "out")
    sampler.load(*store.load(1))
    expected = latents(sampler)
    torch.testing.assert_close(theirs(plain), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(theirs(adapted), expected, atol=TOLERANCE, rtol=0)
    assert (theirs(open_pipeline(model.path)) - expected).abs().max() > 100 * TOLERANCE


def test_the_loras_tensors_are_the_versions_own(lora: Run, tmp_path: Path) -> None:
    """Except for the scale alpha / rank = 4 in B."""
    assert lora.export(tmp_path / "out", "--version", "1") == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == [LORA]
    _, state = lora.store.load(1)
    exported = load_file(tmp_path / "out" / LORA)
    assert exported.keys() == {f"transformer.{name}" for name in state}
    scales = {"lora_A": 1.0, "lora_B": 4.0}
    for name, tensor in state.items():
        assert torch.equal(exported[f"transformer.{name}"], tensor * scales[name.split(".")[-2]])


def test_the_exported_pipeline_is_the_runs_sampler(full: Run, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is allowed
    assert full.export(out) == 0
    said = capsys.readouterr().out
    assert f'pipe = CogVideoXImageToVideoPipeline.from_pretrained("{out}")' in said
    assert re.search(rf"exported version 2 to {out} \(0\.[2-5] MB\); load it", said)
    expected = full.ours(2)
    pipe = open_pipeline(out)
    torch.testing.assert_close(theirs(pipe), expected, atol=TOLERANCE, rtol=0)
    assert (theirs(open_pipeline(full.model)) - expected).abs().max() > 100 * TOLERANCE


def test_an_export_says_that_diffusers_has_full_attention_only(tmp_path: Path, capsys: Any) -> None:
    """A whole run with sparse-causal attention; its weights make other clips under full attention."""
    run = made(tmp_path, **{"model.attention": "sparse_causal", "learner.lr": 0.01})
    assert run.export(tmp_path / "out") == 0
    assert "# trained with model.attention = 'sparse_causal'; diffusers has full" in capsys.readouterr().out
    expected = run.ours(2)
    assert (theirs(open_pipeline(tmp_path / "out")) - expected).abs().max() > 100 * TOLERANCE


def test_the_exported_base_is_the_base(full: Run, tmp_path: Path) -> None:
    assert full.export(tmp_path / "out", "--version", "0") == 0
    base = open_model(full.model).load_transformer("float32", "cpu").state_dict()
    again = open_model(tmp_path / "out").load_transformer("float32", "cpu").state_dict()
    assert base.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in base.items())


def test_a_tool_that_rewrites_an_export_leaves_the_base_alone(full: Run, tmp_path: Path) -> None:
    out, before = tmp_path / "out", contents(full.model)
    assert full.export(out) == 0
    pipe = open_pipeline(out)
    pipe.vae.config["scaling_factor"] = 0.5
    with torch.no_grad():
        pipe.vae.decoder.conv_out.conv.weight.zero_()
        pipe.text_encoder.shared.weight.zero_()
    pipe.save_pretrained(out)
    for file in (file for file in out.rglob("*") if file.is_file()):
        assert file.stat().st_nlink == 1
        file.write_bytes(b"rewritten in place")
    assert contents(full.model) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_model_of_symbolic_links_becomes_one_of_files(full: Run, tmp_path: Path) -> None:
    """Hugging Face's cache has such folders."""
    file = full.model / "vae" / "config.json"
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").symlink_to(file)
    export._take_over(tmp_path / "vae", tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").is_symlink()
    assert (tmp_path / "out" / "config.json").read_bytes() == file.read_bytes()


# Bad input: one line, exit code 2, nothing is left.


def refused(run: Run, out: Path, capsys: Any, *more: str) -> str:
    capsys.readouterr()
    beside = set(out.parent.iterdir()) if out.parent.is_dir() else set()
    assert run.export(out, *more) == 2
    said = capsys.readouterr().err
    assert said.startswith("douga: ")
    assert said.count("\n") == 1
    assert beside == (set(out.parent.iterdir()) if out.parent.is_dir() else set())
    return said


def test_no_such_run(tmp_path: Path, capsys: Any) -> None:
    assert "no run folder" in refused(Run(tmp_path / "nowhere", tmp_path), tmp_path / "out", capsys)


def test_no_such_version_names_those_that_are_there(full: Run, tmp_path: Path, capsys: Any) -> None:
    assert "no weight version 7; there are [0, 1, 2]" in refused(full, tmp_path / "out", capsys, "--version", "7")


def test_a_folder_that_is_not_empty_is_left_alone(full: Run, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "exists and is not an empty folder; choose another" in refused(full, tmp_path, capsys)
    assert "exists and is not an empty folder" in refused(full, tmp_path / "mine.txt", capsys)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_folder_below_a_file_cannot_be_created(full: Run, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert "was not created" in refused(full, tmp_path / "file" / "out", capsys)


@pytest.mark.parametrize(
    ("kind", "module", "write"),
    [
        ("lora", export.CogVideoXImageToVideoPipeline, "save_lora_weights"),
        ("full", export, "save_file"),
        ("full", shutil, "copyfile"),
    ],
)
def test_a_full_disk(
    kind: str,
    module: Any,
    write: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = request.getfixturevalue(kind)
    monkeypatch.setattr(module, write, lambda *parts, **named: _refuse(errno.ENOSPC))
    assert "No space left on device; free some space" in refused(run, tmp_path / "out", capsys)


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_of_another_architecture_name_the_first_wrong_tensor(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Run = request.getfixturevalue(kind)
    settings = layout.find_run(str(run.folder))[1]
    wider = tiny_pipeline(tmp_path / "model", num_layers=1, num_attention_heads=3)
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"path": str(wider)})})
    wrong = r"norm_final.bias is torch.float32[32], the model has torch.float32[48]"
    if kind == "lora":
        wrong = "attn1.to_k.lora_A.weight is torch.float32[2, 32], the model has torch.float32[2, 48]"
    with pytest.raises(ConfigError, match=rf"{re.escape(wrong)}; another architecture\?"):
        export.export(other, run.store, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
