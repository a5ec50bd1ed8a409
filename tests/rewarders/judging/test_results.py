"""Judges as they come: whatever a judge's code does costs the clips that it concerns their score, and is said once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from common.config import JudgeConfig, RewardConfig
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.messages import Prompt, ScoreTask
from rewarders.interface import Clip, JudgeBrokenError, JudgeResult
from rewarders.judges.registry import open_judge
from rewarders.judging.results import OnceLog, UnexpectedError, judge_clips
from rewarders.rewarder import Rewarder

CLIPS = [Clip(np.full((3, 8, 8, 3), grey, np.uint8), 8.0) for grey in (10, 20, 30)]
PROMPTS = [Prompt(place, f"p{place}", "walks") for place in range(3)]


class Red:
    """A judge that answers with `act`, called with the clips' grey levels."""

    outputs = ("red",)
    digest = "d"

    def __init__(self, act: Callable[[list[int]], Any]) -> None:
        self.act, self.calls = act, 0

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        self.calls += 1
        return self.act([int(clip.frames[0, 0, 0, 0]) for clip in clips])


async def lazily(greys: list[int]) -> list[JudgeResult]:
    return [{"red": 1.0} for _ in greys]


def results(act: Callable[[list[int]], Any]) -> list[JudgeResult]:
    return judge_clips(Red(act), CLIPS, PROMPTS, OnceLog())


@pytest.mark.parametrize(
    "value",
    [7, 7.0, np.float32(7), np.float64(7), np.int64(7), np.array(7.0), np.array([7.0]), torch.tensor(7.0)],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}-{getattr(value, 'shape', '')}",
)
def test_numbers_of_any_library_are_floats(value):
    found = results(lambda greys: [{"red": value} for _ in greys])
    assert found == [{"red": 7.0}] * 3
    assert {type(one["red"]) for one in found if isinstance(one, dict)} == {float}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"red": "7.0"}, "gave '7.0' for red instead of a number"),
        ({"red": None}, "gave None for red instead of a number"),
        ({"red": [1.0, 2.0]}, "gave [1.0, 2.0] for red instead of a number"),
        ({"red": 1j}, "gave 1j for red instead of a number"),
        ({"red": True}, "gave True for red instead of a number"),
        ({"red": np.zeros(2)}, "gave array([0., 0.]) for red instead of a number"),
        ({"blue": 1.0}, "gave no value for red"),
        (None, "gave None instead of a value per output"),
        (3.0, "gave 3.0 instead of a value per output"),
        ("no face", "no face"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_is_named_and_costs_its_clip_alone(answer, reason, place):
    found = results(lambda greys: [answer if i == place else {"red": grey} for i, grey in enumerate(greys)])
    assert found[place] == reason
    assert [one for i, one in enumerate(found) if i != place] == [
        {"red": g} for i, g in enumerate((10, 20, 30)) if i != place
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_are_not_finite_stay_for_the_exchange_to_refuse(bad, place):
    found = results(lambda greys: [{"red": bad if i == place else grey} for i, grey in enumerate(greys)])
    assert [math.isfinite(one["red"]) for one in found if isinstance(one, dict)] == [i != place for i in range(3)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda greys: [{"red": 1.0}] * (len(greys) - 1), "gave 0 results for 1 clips"),
        (lambda greys: [{"red": 1.0}] * (len(greys) + 1), "gave 2 results for 1 clips"),
        (lambda greys: ({"red": 1.0} for _ in greys), "gave generator instead of a list of results"),
        (lazily, "is an async function; it must return a list of results"),
        (lambda greys: {*greys}, "gave set instead of a list of results"),
        (lambda greys: None, "gave NoneType instead of a list of results"),
        (lambda greys: {"red": 1.0}, "gave dict instead of a list of results"),
        (lambda greys: "nothing", "gave str instead of a list of results"),
    ],
)
def test_wrong_counts(answer, reason):
    assert results(answer) == [reason] * 3


def boom(greys: list[int]) -> Any:
    if 20 in greys:
        raise KeyError("boom in my reward")
    return [{"red": grey} for grey in greys]


def test_an_error_for_one_clip_costs_that_clip_alone(caplog: pytest.LogCaptureFixture):
    line = boom.__code__.co_firstlineno + 2
    found = results(boom)
    assert found == [{"red": 10.0}, f"judge red: KeyError: 'boom in my reward' (test_results.py:{line})", {"red": 30.0}]
    assert isinstance(found[1], UnexpectedError)
    assert sum(record.exc_info is not None for record in caplog.records) == 1  # the batch and the clip: one place


def test_a_refused_batch_whose_clips_are_fine_is_said_once(caplog: pytest.LogCaptureFixture):
    def one_at_a_time(greys: list[int]) -> Any:
        return [{"red": 1.0}] if len(greys) == 1 else []

    judge, once = Red(one_at_a_time), OnceLog()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert judge_clips(judge, CLIPS, PROMPTS, once) == [{"red": 1.0}] * 3
    slow = [record.getMessage() for record in caplog.records]
    assert slow == [
        "judge red refuses 3 clips at once (gave 0 results for 3 clips); they are scored one by one, slower"
    ]


def task(place: int) -> ScoreTask:
    return ScoreTask(f"{place}-0-v0", PROMPTS[0], encode_mp4(CLIPS[2].frames.repeat(8, 1).repeat(8, 2), 8), place)


def test_a_judge_whose_code_always_fails_ends_the_run_with_its_line():
    def always(greys: list[int]) -> Any:
        raise ZeroDivisionError("boom")

    rewarder = Rewarder([Red(always)], RewardConfig())
    for place in range(2):
        assert "ZeroDivisionError: boom (test_results.py:" in rewarder.score([task(place)])[0].problems["red"]
    with pytest.raises(
        JudgeBrokenError, match=r"judge red: ZeroDivisionError: boom \(test_results.py:\d+\); it failed"
    ):
        rewarder.score([task(2)])


def test_a_judge_that_fails_now_and_then_does_not_end_the_run():
    answers = iter([0, 0, 1] * 3)

    def often(greys: list[int]) -> Any:
        return [{"red": 1 / next(answers)} for _ in greys]

    rewarder = Rewarder([Red(often)], RewardConfig())
    scores = [rewarder.score([task(place)])[0] for place in range(9)]
    assert [bool(score.problems) for score in scores] == [True, True, False] * 3


def test_a_failed_gpu_is_a_crash_of_the_process():
    def dead(greys: list[int]) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        results(dead)


class Raises:
    """Constructors and properties of users' judges that fail."""

    outputs = ("v",)
    digest = "d"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        raise KeyError("weights")


class NoArguments:
    outputs = ("v",)
    digest = "d"

    def judge(self, clips: Any, prompts: Any) -> Any: ...


class NoDigest:
    outputs = ("v",)

    def __init__(self, judge: JudgeConfig, device: str) -> None: ...

    def judge(self, clips: Any, prompts: Any) -> Any: ...


class TwoOfOne(NoDigest):
    digest = "d"
    outputs = ("v", "v")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("tests.rewarders.judging.test_results:Raises", r"KeyError: 'weights' \(test_results.py:\d+\)"),
        ("tests.rewarders.judging.test_results:NoArguments", "TypeError: .*takes no arguments"),
        ("tests.rewarders.judging.test_results:NoDigest", "must be a Reward or a Judge"),
        ("tests.rewarders.judging.test_results:TwoOfOne", "must be distinct names"),
        ("tests.rewarders.judging.test_results:boom", "has no class boom"),
        ("nowhere.at_all:Red", "cannot be imported"),
    ],
)
def test_judges_that_cannot_be_opened_are_refused_in_one_line(kind, line):
    with pytest.raises(ConfigError, match=f"^reward.judges.red: .*{line}") as caught:
        open_judge("red", JudgeConfig(kind=kind))
    assert "\n" not in str(caught.value)


def test_a_module_that_raises_is_named_with_file_and_line(tmp_path, monkeypatch):
    (tmp_path / "raising_judges.py").write_text("import math\n\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"ZeroDivisionError: division by zero \(raising_judges.py:3\)"):
        open_judge("red", JudgeConfig(kind="raising_judges:Red"))
