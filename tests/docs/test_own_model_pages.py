"""The commands of docs/candidates.md and docs/evaluation.md, run as they are shown, with a tiny model of one's own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy.cli.main import main
from tests.docs.test_commands import commands
from tests.support.tiny import FAMILIES, WORDS, tiny_pipeline

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = """\
name = "mine"
steps = 1
prompts = "prompts.jsonl"
[model]
path = "model"
[sampler]
steps = 2
candidates = 2
[learner]
batch_size = 1
lr = 1e-3
[evaluation]
prompts = 2
[guardrails]
prompts = 0
"""
LESS = {  # what is shown -> what this machine does in its place
    "/models/CogVideoX-5b-I2V": "model",
    "@30": "@1",
    "--count 200": "--count 2",
    "--clips 5": "--clips 2",
    "--guardrails.prompts 0": "--guardrails.prompts 0 --name quick",  # runs/mine is there already
}
ELSEWHERE = {  # a part of commands that are not run here -> where they are
    "--reward.judges.vs.kind videoscore": "tests/rewarders/judges has VideoScore, and tests/deploy/results adds scores",
    "--vbench-results": "tests/deploy/evaluation/test_vbench_results.py",
    "evaluate_i2v.py": "VBench's own program",
    "evaluate.py": "VBench's own program",
}


def write_rows(file: str, splits: list[str | None]) -> None:
    rows = [{"image": "first.png", "prompt": f"a {word} walks"} for word in WORDS]
    kept = [row | ({"split": split} if split else {}) for row, split in zip(rows, splits, strict=False)]
    Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in kept))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: Any) -> Path:
    """The folder of the engineer; both pages share the runs in it."""
    monkeypatch.chdir(folder)
    if not Path("my.toml").exists():
        tiny_pipeline(folder / "model", **FAMILIES["5B-I2V"])
        Image.new("RGB", (160, 90), (200, 90, 30)).save("first.png")
        write_rows("prompts.jsonl", ["train", "train", "heldout", "heldout"])
        write_rows("test.jsonl", [None, None])
        Path("my.toml").write_text(CONFIG)
        for more in ("--name mine", "--name other --seed 1"):
            start = "run" if "mine" in more else "collect"
            assert main([start, "my.toml", *more.split()]) == 0
    return folder


def run_page(page: str) -> list[str]:
    """Runs the page's commands in their order. Returns them."""
    done = []
    for command in commands((DOCS / page).read_text()):
        if any(part in command for part in ELSEWHERE):
            continue
        line = command
        for shown, less in LESS.items():
            line = line.replace(shown, less)
        program, *words = shlex.split(line)
        assert program == "douga", line
        assert main(words) == 0, line
        done.append(command)
    return done


def test_the_page_on_candidate_sets(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run_page("candidates.md")) == 13
    assert "8 candidates, 0 damaged" in capsys.readouterr().out  # of two sets of two prompts
    assert all(
        (here / "runs" / name / "report.html").exists() for name in ("gapo", "dpo", "motion", "online", "replay")
    )


def test_the_page_on_evaluation(here: Path) -> None:
    if not (here / "runs" / "dpo").exists():  # this test alone
        for name in ("gapo", "dpo"):
            assert main(["run", "my.toml", "--name", name, "--algorithm.name", name]) == 0
    assert len(run_page("evaluation.md")) == 4
    assert {file.name for file in (here / "vb").iterdir()} >= {"images", "base", "mine"}
