"""The commands of docs/annotate.md, run as they are shown: HuViDPO's two stages with a tiny model and three clips."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.data.ratings import read_ratings
from common.data.video import encode_mp4
from deploy.cli.main import main
from tests.docs.test_commands import commands
from tests.docs.test_rewards_page import execute
from tests.support.tiny import FAMILIES, tiny_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "annotate.md"
ROOT = Path(__file__).parents[2]
MODEL = "--model.device cpu --model.dtype float32 --model.frames 9 --model.height 48 --model.width 64"
JUDGE = '--reward.judges.clip.kind temporal_flicker --reward.judges.clip.path "" --reward.judges.clip.high 0'
FEWER = "--steps 1 --learner.steps-per-push 1 --evaluation.prompts 2 --sampler.offload off --sampler.vae-tiling off"
LESS = {  # a command -> what makes it small enough for this machine
    "douga finetune": f"--model.path model {MODEL} {JUDGE} {FEWER} --sampler.steps 2",
    "douga sample tuned --config $C": f"{MODEL} --sampler.steps 2 --sampler.vae-tiling off --sampler.offload off",
    "douga run": f"{MODEL} {JUDGE} {FEWER} --sampler.steps 2",
    "douga sample tuned --config my.toml": "--sampler.guidance 1",
}
ELSEWHERE = {"douga prompts first-frames": "tests/actors/prompts/test_first_frames.py"}  # needs a text-to-image model
CAPTIONS = ["a robot walks", "the robot runs", "a zombie jumps", "the zombie walks", "a robot runs"]


def write_files() -> None:
    Path("clips").mkdir()
    for number, name in enumerate(("walk", "run", "jump")):
        frames = np.random.default_rng(number).integers(0, 256, (1, 48, 64, 3), np.uint8).repeat(20, 0)
        frames[:, :8] = np.arange(20, dtype=np.uint8)[:, None, None, None] * 10
        Path(f"clips/{name}.mp4").write_bytes(encode_mp4(frames, 8))
        Path(f"clips/{name}.txt").write_text(CAPTIONS[number])
    Image.new("RGB", (160, 90), (200, 90, 30)).save("first.png")
    splits = ["train", "train", "train", "heldout", "heldout"]
    rows = [
        {"image": "first.png", "prompt": text, "split": split, "category": "smile"}
        for text, split in zip(CAPTIONS, splits, strict=True)
    ]
    Path("smile.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("prompts.jsonl").write_text(f"{json.dumps(rows[0])}\n")
    Path("my.toml").write_text("[model]\nframes = 9\nheight = 48\nwidth = 64\n")


def run(command: str) -> None:
    less = next((more for start, more in LESS.items() if command.startswith(start)), "")
    line = f"{command} {less}".replace("$C", str(ROOT / "deploy" / "launch" / "configs"))
    if command.startswith("douga annotate"):
        execute(line.replace("runs/toon", "runs/huvidpo-stage2"))
    else:
        assert main(shlex.split(line)[1:]) == 0, line


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(tmp_path / "model", **FAMILIES["5B-I2V"])
    write_files()
    shown = [one for one in commands(PAGE.read_text()) if not any(one.startswith(part) for part in ELSEWHERE)]
    assert len(shown) == 11
    for command in [*shown[4:], *shown[:4]]:  # the first four want clips and a run
        run(command)
        if command.startswith("douga annotate made --rubric huvidpo --export"):
            assert {row.category for row in read_ratings(Path("rated/ratings.jsonl")).rows} == {"smile"}
        if command.startswith("douga run"):
            shutil.rmtree("rated")  # the page exports other ratings to this folder too
    assert (tmp_path / "runs" / "huvidpo-stage2" / "report.html").exists()
    assert (tmp_path / "rated" / "ratings.jsonl").exists()
