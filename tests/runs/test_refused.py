"""What can be known to be wrong is refused before a run folder is made; a corrected run may have its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.config import JudgeConfig, RunConfig
from common.messages import Prompt
from deploy.cli.main import exit_code, main
from deploy.run_dir import layout
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import serial
from deploy.runtime.hub import Hub
from rewarders.interface import Clip, JudgeResult
from tests.support import toy
from tests.support.tiny import tiny_pipeline


class Picky:
    """A reward that takes the option `level`, and refuses other values than 1."""

    outputs, digest = ("red",), "picky"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        if judge.options.get("level", 1) != 1:
            raise ValueError(f"level is {judge.options['level']!r}, must be 1")

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        return [{"red": float(clip.frames.astype(float).std()) % 100} for clip in clips]


class Blind:
    """A reward that scores no clip."""

    outputs, digest = ("blind",), "blind"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        pass

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        return ["no face" for _ in clips]


OWN = {"reward.path": "", "reward.judges.red.kind": f"{__name__}:Picky"}
LORA = {"learner.train": "lora"}

REFUSED = {  # wrong keys -> a part of the line; of these, everything but the rewards is also refused by a cluster's hub
    "targets": (LORA | {"learner.lora.targets": "q_proj"}, "learner.lora.targets = ['q_proj']: "),
    "trainable": ({"learner.trainable": "blocks.*"}, "learner.trainable = 'blocks.*': no parameter"),
    "optimizer": ({"learner.optimizer": "adamw_8bit"}, "adamw_8bit': needs the package bitsandbytes"),
    "deepspeed": ({"learner.zero_stage": 2}, "need the package deepspeed"),
    "size": (OWN | {"model.height": 50}, "model.height = 50"),
    "model": ({"model.path": "nowhere"}, "model.path = 'nowhere': no folder"),
    "prompts": ({"prompts": "bad.jsonl"}, "bad.jsonl:1: prompt = 7 is a number"),
    "no prompts": ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
    "pairs": ({"pairs": "nowhere.jsonl"}, "nowhere.jsonl"),
    "candidates": ({"candidates": "nowhere"}, "nowhere"),
    "held-out judge": ({"guardrails.prompts": 2, "guardrails.judges.j.kind": "nothing"}, "guardrails.judges.j: "),
    "collected prompts": ({"prompts": "good.jsonl", "collect.prompts": 9}, "collect.prompts = 9: prompts = "),
    "collected weights": ({"collect.prompts": 2, "collect.run": "nowhere"}, "nowhere"),
    "reward option": (OWN | {"reward.judges.red.options.level": 2}, "reward.judges.red: kind = "),
    "reward kind": ({"reward.path": "", "reward.judges.red.kind": "clipscore"}, "reward.judges.red: "),
    "reward folder": ({"reward.path": "nowhere"}, "nowhere"),
    "no reward": ({"reward.path": ""}, "nothing scores the clips"),
}
OF_REWARDERS = ("reward option", "reward kind", "reward folder", "no reward")  # a cluster opens them on their own node


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the model and prompt files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    Image.new("RGB", (64, 48), "red").save("first.png")
    rows = [{"image": "first.png", "prompt": f"a robot walks {way}"} for way in ("right", "left", "in", "on")]
    Path("good.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("bad.jsonl").write_text('{"image": "first.png", "prompt": 7}\n')
    return tmp_path


def started(config: RunConfig) -> int:
    if config.mode == "serial":
        return exit_code(lambda: 0 if serial.run(config) else 1)
    return exit_code(lambda: 0 if Hub(config).open() else 1)


FOUND_BY = [("serial", case) for case in REFUSED] + [("cluster", case) for case in REFUSED if case not in OF_REWARDERS]


@pytest.mark.parametrize(("mode", "case"), FOUND_BY)
def test_a_refused_configuration_claims_no_folder(
    mode: str, case: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, words = REFUSED[case]
    if case in ("optimizer", "deepspeed"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code = exit_code(lambda: started_with(here, mode, keys))
    error = capsys.readouterr().err
    assert code == 2, error
    assert words in error
    assert error.count("\n") == 1
    assert not (here / "runs").exists()


def started_with(here: Path, mode: str, keys: dict[str, Any]) -> int:
    return started(toy.config(here, mode=mode, **({"reward.path": "toon"} | keys)))


def test_a_run_that_its_first_clip_ended_may_start_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run has its folder, and a clip in it, when the reward turns out to score nothing."""
    blind = {"reward.path": "", "reward.judges.b.kind": f"{__name__}:Blind"}
    config = toy.config(here, **blind)
    assert started(config) == 2
    assert "reward b: it scored neither" in capsys.readouterr().err
    assert read_json_lines(config.folder / "events.jsonl")[-1]["event"] == "failed"
    corrected = toy.config(here, steps=1, **OWN)
    assert started(corrected) == 0
    begun = layout.find_run(str(config.folder))[1]
    assert begun == corrected.model_copy(update={"threads": begun.threads})
    assert "it starts over with the changed configuration" in (config.folder / "logs" / "serial.log").read_text()
    assert main(["status", str(config.folder)]) == 0
    other = toy.config(here, steps=1, seed=5, **OWN)
    assert started(other) == 2
    assert "another configuration: seed (0 there, 5 now)" in capsys.readouterr().err
