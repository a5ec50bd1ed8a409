"""Every end of a run leaves its reason: an event, the line of `douga status`, and a traceback of a user's own code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common.messages import Prompt
from deploy.cli.main import exit_code, main
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import serial
from learner.algorithms.dpo import Dpo
from tests.support import toy
from tests.support.tiny import tiny_pipeline


class BrokenReward(toy.HashReward):
    """A reward whose code fails for every clip."""

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        raise KeyError("boom in my reward")


class BrokenAlgorithm(Dpo):
    """An algorithm whose loss fails."""

    def loss(self, *arguments, **more):
        raise ValueError("boom in my loss")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def line_of(function) -> int:
    return function.__code__.co_firstlineno + 1


def end_of(config, rewards, capsys, stop=lambda: False) -> tuple[int, str, dict, str]:
    """Returns exit code, the line on stderr, the last event, and what `douga status` prints."""

    def act() -> int:
        serial.run(config, rewards, stop)
        return 0

    code = exit_code(act)
    said = capsys.readouterr().err.splitlines()[-1].removeprefix("douga: ")
    assert main(["status", str(config.folder)]) == 0
    return code, said, read_json_lines(config.folder / "events.jsonl")[-1], capsys.readouterr().out


def test_a_reward_that_raises(tmp_path, model, capsys):
    (tmp_path / "model").symlink_to(model)
    config = toy.config(tmp_path, **{"evaluation.prompts": 4})
    code, said, event, status = end_of(config, toy.rewards(BrokenReward), capsys)
    place = f"(test_endings.py:{line_of(BrokenReward.score)})"
    assert code == 3
    assert f"KeyError: 'boom in my reward' {place}" in said
    assert (event["event"], event["words"], event["exit_code"], event["step"]) == ("failed", said, 3, 0)
    assert f"failed after step 0 with exit code 3: {said}" in status
    log = (config.folder / "logs" / "serial.log").read_text()
    assert 'raise KeyError("boom in my reward")' in log


def test_an_algorithm_that_raises(tmp_path, model, capsys):
    (tmp_path / "model").symlink_to(model)
    own = {"algorithm.name": "tests.runs.test_endings:BrokenAlgorithm"}
    config = toy.config(tmp_path, **own)
    code, said, event, status = end_of(config, toy.rewards(), capsys)
    line = f"unexpected error: ValueError: boom in my loss (test_endings.py:{line_of(BrokenAlgorithm.loss)})"
    assert code == 3
    assert said.startswith(f"{line}; traceback: ")
    assert (event["event"], event["words"], event["exit_code"]) == ("failed", line, 3)
    assert line in status
    assert 'raise ValueError("boom in my loss")' in (config.folder / "logs" / "serial.log").read_text()
    kept = Path(said.rpartition("traceback: ")[2])
    assert 'raise ValueError("boom in my loss")' in kept.read_text()
    kept.unlink()


def test_a_second_interrupt(tmp_path, model, capsys):
    (tmp_path / "model").symlink_to(model)

    def interrupt() -> bool:
        raise KeyboardInterrupt

    code, _, event, status = end_of(toy.config(tmp_path), toy.rewards(), capsys, interrupt)
    assert code == 130
    assert (event["event"], event["step"], event["exit_code"]) == ("interrupted", 0, 130)
    assert "interrupted after step 0" in status


def test_a_process_that_was_killed(tmp_path, model, capsys):
    (tmp_path / "model").symlink_to(model)
    config = toy.config(tmp_path)
    command = [sys.executable, "-m", "tests.support.toy", str(tmp_path), "9"]
    assert subprocess.run(command, timeout=300, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert serial.run(config, toy.rewards()).finished
    events = read_json_lines(config.folder / "events.jsonl")
    names = [one["event"] for one in events]
    assert names.count("killed") == 1
    assert names[names.index("killed") + 1] in ("started", "resumed")
    assert events[names.index("killed")]["words"].startswith("ended without recording why: killed by SIGKILL")
    assert "the process before ended without recording why" in (config.folder / "logs" / "serial.log").read_text()


def test_a_judge_that_gives_everything_one_value(tmp_path, model, capsys):
    (tmp_path / "model").symlink_to(model)
    code, said, event, _ = end_of(toy.config(tmp_path), toy.rewards(toy.ConstantReward), capsys)
    assert code == 3
    assert said.startswith("no pairs: 32 groups in a row tied: ")
    assert "smoothness gave 50.00 to every clip" in said
    assert (event["event"], event["words"]) == ("failed", said)
