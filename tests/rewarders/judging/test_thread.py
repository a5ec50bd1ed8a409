"""Code of judges is bounded in time, prints on stderr, and cannot end the process."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from threading import Event, current_thread, get_ident
from typing import Any

import numpy as np
import pytest

from common.config import JudgeConfig, RewardConfig
from common.errors import ConfigError
from common.messages import Prompt
from deploy.cli.main import exit_code
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime import driver, serial
from rewarders.interface import Clip
from rewarders.judges import open_judge, open_rewards
from rewarders.judging import thread
from rewarders.judging.pace import FIRST, Pace
from rewarders.judging.results import judge_clips
from rewarders.judging.thread import JudgeHangsError, JudgeThread
from tests.support import toy
from tests.support.tiny import tiny_pipeline

NEVER = Event()
CLIP = Clip(np.zeros((2, 8, 8, 3), np.uint8), 8.0)


def test_a_call_that_hangs_is_left_behind_and_the_next_one_works() -> None:
    judges = JudgeThread()
    with pytest.raises(JudgeHangsError, match=r"^judge red: scoring 4 clips has not ended within .* = 0.05;"):
        judges.call("judge red: scoring 4 clips", NEVER.wait, 0.05)
    assert judges.call("another", lambda: 7, 60) == 7


def test_a_long_call_is_said_at_doubling_times(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(thread, "FIRST_SAID", 0.02)
    with caplog.at_level(logging.WARNING), pytest.raises(JudgeHangsError):
        JudgeThread().call("judge red: scoring 4 clips", NEVER.wait, 0.5)
    said = [record.getMessage() for record in caplog.records]
    assert 2 <= len(said) <= 5
    assert said[0].startswith("judge red: scoring 4 clips takes 0 s so far; after 0.5 s (reward.judge_seconds)")


def test_all_calls_are_made_by_one_thread_and_may_be_nested() -> None:
    judges = JudgeThread()
    base = judges.call("open", lambda: sqlite3.connect(":memory:"))
    assert judges.call("ask", lambda: base.execute("SELECT 3").fetchone()) == (3,)  # SQLite refuses other threads
    assert judges.call("outer", lambda: judges.call("inner", lambda: current_thread().name, 1)) == "judges"
    judges.call("close", base.close)


def test_an_interrupt_is_not_held_up_by_a_judge() -> None:
    judges, here, began = JudgeThread(), get_ident(), Event()

    def interrupt() -> None:
        began.set()
        signal.pthread_kill(here, signal.SIGINT)
        NEVER.wait()

    with pytest.raises(KeyboardInterrupt):
        judges.call("judge", interrupt)
    assert began.is_set()


class Quits:
    """A judge that prints and calls `sys.exit` where its option says."""

    outputs, digest = ("v",), "quits"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        print("loading ...")
        self.where = judge.options["where"]
        if self.where == "open":
            raise SystemExit(0)

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> Any:
        print("judging ...")
        if self.where == "judge":
            raise SystemExit("no licence")
        return [{"v": 1.0} for _ in clips]


def quits(where: str) -> JudgeConfig:
    return JudgeConfig(kind=f"{__name__}:Quits", options={"where": where})


def test_what_a_judge_prints_is_not_on_stdout(capsys: pytest.CaptureFixture) -> None:
    judge = open_judge("red", quits("nowhere"))
    assert judge_clips(judge, [CLIP], [Prompt(0, "p", "a")]) == [{"v": 1.0}]
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == ["loading ...", "judging ..."]


def test_a_judge_that_calls_exit_does_not_end_the_process() -> None:
    with pytest.raises(ConfigError, match=r"reward.judges.red: .* it called sys.exit\(0\) \(test_thread.py:\d+\)"):
        open_judge("red", quits("open"))
    (found,) = judge_clips(open_judge("red", quits("judge")), [CLIP], [Prompt(0, "p", "a")])
    assert isinstance(found, str)
    assert found.startswith("judge v: RuntimeError: it called sys.exit('no licence') (test_thread.py:")


def test_a_module_that_calls_exit_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "quitting_judges.py").write_text("import sys\n\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"it called sys.exit\(0\) \(quitting_judges.py:3\)"):
        open_judge("red", JudgeConfig(kind="quitting_judges:Red"))


class HangsOpen:
    """A judge whose constructor never returns."""

    outputs, digest = ("v",), "hangs"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        NEVER.wait()

    def judge(self, clips: Any, prompts: Any) -> Any: ...


def test_a_judge_that_never_opens_is_given_up() -> None:
    judge = {"red": {"kind": f"{__name__}:HangsOpen"}}
    config = RewardConfig.model_validate({"path": "", "judges": judge, "judge_seconds": 0.05})
    with pytest.raises(JudgeHangsError, match=r"^reward.judges.red: opening has not ended within"):
        open_rewards(config)


class HangsOnSampled(toy.HashReward):
    """A reward that scores made clips, and never returns for those of a run."""

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        if prompts[0].id != "rehearsal":
            NEVER.wait()
        return super().score(clips, prompts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(
    ("mode", "module"), [("serial", serial), pytest.param("cluster", driver, marks=pytest.mark.slow)]
)
def test_a_run_ends_whose_judge_hangs(
    tmp_path: Path, model: Path, mode: str, module: Any, capsys: pytest.CaptureFixture
) -> None:
    config = toy.config(tmp_path, **{"model.path": model, "reward.judge_seconds": 5, "mode": mode})

    def act() -> int:
        module.run(config, toy.rewards(HangsOnSampled))
        return 0

    assert exit_code(act) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "clips has not ended within reward.judge_seconds = 5; the same command resumes the run" in said
    last = read_json_lines(config.folder / "events.jsonl")[-1]
    assert (last["event"], last["exit_code"]) == ("failed", 3)
    assert last["words"] in said


@pytest.mark.parametrize(
    ("clips", "seconds", "said"), [(4, 39.0, 0), (4, 41.0, 1), (16, 41.0, 0), (1, 11.0, 0), (1, 41.0, 1)]
)
def test_a_judge_that_gets_slower_is_said(
    clips: int, seconds: float, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    pace = Pace("red")
    for _ in range(FIRST):
        pace.add(4, 4.0)  # a second per clip
    pace.add(clips, seconds)
    pace.add(clips, seconds)  # as slow as before: not said again
    assert len(caplog.records) == said


@pytest.mark.parametrize("ends", ["raises", "returns"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_that_leaves_the_judges_code_ends(ends: str) -> None:
    """It has copies of the run's thread, files and sockets, and its parent may wait for it."""

    def act() -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ends == "raises":
            raise ValueError("in the child")
        return 0

    assert JudgeThread().call("judge red: scoring 1 clips", act, 30) == 1
