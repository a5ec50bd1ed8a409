"""A run belongs to one base model, at any path; every command refuses another one of equal shapes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.models.fingerprint import PARTS, model_parts
from common.weights.store import WeightStore
from deploy.cli.main import main
from deploy.run_dir import layout
from deploy.run_dir.jsonl import EVENTS, read_json_lines
from deploy.runtime import serial
from deploy.runtime.hub import Hub
from tests.support import toy
from tests.support.tiny import tiny_pipeline

REFUSED = r"made on another base model than model\.path = '{}', whose files differ in {}; set model\.path to the"


@dataclass(frozen=True)
class Bases:
    """A LoRA run that was trained for two steps on `model`, a copy of it, and two others of the same shapes."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "toy"

    def config(self, model: str, **flags: Any) -> Any:
        values = {"model.path": self.root / model, "learner.train": "lora", "learner.lora.rank": 2, "steps": 2}
        return toy.config(self.root, **(values | flags))


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    made = Bases(tmp_path)
    for name, seed in (("model", 0), ("other", 1)):
        tiny_pipeline(tmp_path / name, seed, num_layers=1)
    for name in ("copy", "vae"):
        shutil.copytree(tmp_path / "model", tmp_path / name)
    shutil.rmtree(tmp_path / "vae" / "vae")
    shutil.copytree(tmp_path / "other" / "vae", tmp_path / "vae" / "vae")
    serial.run(made.config("model"), toy.rewards())
    return made


def test_another_base_model_is_refused_everywhere(bases: Bases, capsys: pytest.CaptureFixture[str]) -> None:
    parts = model_parts(bases.root / "model")
    assert json.loads((bases.folder / "model.json").read_text()) == parts
    assert WeightStore(bases.folder / "weights").manifest(2).model == parts
    assert tuple(parts) == PARTS
    begun = read_json_lines(bases.folder / EVENTS)
    for name, differ in (("other", "transformer, vae, text_encoder"), ("vae", "vae")):
        message = REFUSED.format(bases.root / name, differ)
        with pytest.raises(ConfigError, match=f"^{bases.folder}: {message}"):
            serial.run(bases.config(name, steps=3), toy.rewards())
        with pytest.raises(ConfigError, match=message):
            Hub(bases.config(name, steps=3, mode="cluster")).open()
    assert read_json_lines(bases.folder / EVENTS) == begun
    assert serial.run(bases.config("copy", steps=3), toy.rewards()).step == 3
    assert layout.find_run(str(bases.folder))[1].model.path == str(bases.root / "copy")
    _other_commands(bases, capsys)


def _other_commands(bases: Bases, capsys: pytest.CaptureFixture[str]) -> None:
    file = bases.folder / layout.CONFIG
    doors = {
        "export": ["--out", bases.root / "a"],
        "evaluate": ["--out", bases.root / "c"],
        "sample": ["--out", bases.root / "b", "--count", 1],
    }
    for command, more in doors.items():
        words = [command, str(bases.folder), *map(str, more)]
        text = file.read_text()
        file.write_text(text.replace(str(bases.root / "copy"), str(bases.root / "other")))
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        version = 0 if command == "evaluate" else 4  # it samples the base model first
        assert f"{bases.folder}/weights: version {version}: made on another base model than model.path = " in line
        file.write_text(text)
        if command != "evaluate":  # slow, and the same check
            assert main(words) == 0


def test_a_base_model_that_changes_in_place_is_refused(bases: Bases) -> None:
    """Also in a full run, and before its first checkpoint: its clips were sampled by the first model."""
    full = {"learner.train": "full", "name": "full"}
    with pytest.raises(Killed):
        serial.run(bases.config("model", **full), toy.rewards(), stop=toy.after(6, _die))
    shutil.rmtree(bases.root / "model")
    shutil.copytree(bases.root / "other", bases.root / "model")
    with pytest.raises(ConfigError, match=REFUSED.format(bases.root / "model", "transformer, vae, text_encoder")):
        serial.run(bases.config("model", **full), toy.rewards())


class Killed(Exception):
    """The process ends here."""


def _die() -> bool:
    raise Killed
