"""Rewards that can score nothing are found before, or with, a run's first clip."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import ModelConfig, RewardConfig
from common.errors import ConfigError
from common.messages import Prompt
from deploy.runtime import serial
from rewarders.interface import Clip, JudgeBrokenError, JudgeResult, JudgeUnavailableError
from rewarders.judging.rehearsal import made_clips, rehearse
from rewarders.rewarder import Rewarder
from tests.support import toy
from tests.support.tiny import tiny_pipeline


class Answers:
    """A judge that gives the next of `answers`, the last one for ever; an exception is raised."""

    outputs, digest = ("red",), "answers"

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), 0

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `rewarders.interface.Judge`."""
        return [self._next(clip) for clip in clips]

    def _next(self, clip: Clip) -> JudgeResult:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        value = zlib.crc32(clip.frames.tobytes()) % 101 if answer is None else answer
        return answer if isinstance(answer, str) else {"red": value}


def rewarder(*answers: Any) -> Rewarder:
    return Rewarder([Answers(*answers)], RewardConfig())


def test_made_clips_have_the_models_size_and_rate_and_move() -> None:
    for clip in made_clips(ModelConfig(frames=5, height=16, width=24, fps=16)):
        assert (clip.frames.shape, clip.frames.dtype, clip.fps) == ((5, 16, 24, 3), np.uint8, 16.0)
        assert (clip.frames[0] != clip.frames[-1]).any()


@pytest.mark.parametrize("answers", [(50.0,), (math.nan, 1.0), ("no face", 0.0), (ValueError("dark"), 2.0)])
def test_a_reward_that_scores_one_of_two_clips_is_not_in_doubt(answers: tuple[Any, ...]) -> None:
    found = rewarder(*answers)
    rehearse(found, ModelConfig())
    assert found.doubts == {}


@pytest.mark.parametrize(
    ("answer", "words"), [("no face", "no face"), (math.nan, "red is nan"), (math.inf, "red is inf")]
)
def test_a_reward_without_a_value_is_in_doubt(answer: Any, words: str) -> None:
    found = rewarder(answer)
    rehearse(found, ModelConfig())
    assert found.doubts == {"red": words}


def test_a_server_that_is_away_is_left_to_the_run() -> None:
    found = rewarder(JudgeUnavailableError("busy"))
    rehearse(found, ModelConfig())
    assert found.doubts == {}


def test_a_reward_whose_code_fails_ends_the_run_at_the_first_clip(tmp_path: Path, model: Path) -> None:
    judge = Answers(KeyError("boom"))
    with pytest.raises(JudgeBrokenError, match=r"judge red: KeyError: 'boom' \(test_rehearsal.py:\d+\); it failed for"):
        serial.run(of_red(tmp_path, model, **{"evaluation.prompts": 4}), [judge])
    assert judge.asked == 2 + 1  # made clips, then the first held-out one


def test_an_answer_of_another_type_is_refused() -> None:
    class Lazy(Answers):
        def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> Any:
            return (answer for answer in super().judge(clips, prompts))

    with pytest.raises(ConfigError, match=r"reward red: .*: gave generator instead of a list of results"):
        rehearse(Rewarder([Lazy(1.0)], RewardConfig()), ModelConfig())


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((10.0, 20.0, 10.0, 20.0), []),
        ((10.0, 20.0, 10.05, 20.0), []),
        ((10.0, 20.0, 10.0, 23.5), ["reward red gave the same clip 20.00 alone and 23.50 in a batch of 2"]),
        ((math.nan, 20.0), []),
        ((10.0, 20.0, math.nan, 20.0), []),
    ],
)
def test_a_score_that_depends_on_chance_or_on_the_batch_is_said(
    answers: tuple[float, ...], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = rewarder(*answers)
    rehearse(found, ModelConfig())
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == said
    assert found.doubts == {}


def test_a_reward_that_refuses_the_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reward red: no clip of 9x48x64 at 8 fps can be scored: needs 512x512$"):
        rehearse(rewarder(ValueError("needs 512x512")), ModelConfig())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def of_red(root: Path, model: Path, **flags: Any) -> Any:
    judge = {"reward.path": "", "reward.judges.red.kind": "x"}
    return toy.config(root, **{"model.path": model, "steps": 1, **judge, **flags})


@pytest.mark.parametrize("evaluated", [2, 0])
@pytest.mark.parametrize(("answer", "words"), [("no face", "no face"), (math.nan, "red is nan")])
def test_a_reward_that_scores_nothing_ends_the_run_at_the_first_clip(
    tmp_path: Path, model: Path, evaluated: int, answer: Any, words: str
) -> None:
    judge = Answers(answer)
    config = of_red(tmp_path, model, **{"evaluation.prompts": evaluated, "guardrails.prompts": 0})
    with pytest.raises(ConfigError, match=rf"reward red: it scored neither .*: {words}; the run ends here"):
        serial.run(config, [judge])
    assert judge.asked == 2 + (1 if evaluated else 2)  # made clips, then those of the first group


def test_a_doubtful_reward_that_scores_the_first_clip_goes_on(tmp_path: Path, model: Path) -> None:
    assert serial.run(of_red(tmp_path, model), [Answers("no face", "no face", None)]).step == 1


def test_one_clip_without_a_score_does_not_end_the_run(tmp_path: Path, model: Path) -> None:
    config = of_red(tmp_path, model, **{"evaluation.prompts": 4})
    assert serial.run(config, [Answers(50.0, 50.0, 50.0, 50.0, "no face", None)]).step == 1


def test_the_toon_heads_are_refused_for_another_size_before_a_folder_is_made(tmp_path: Path, model: Path) -> None:
    config = toy.config(tmp_path, **{"model.path": model, "model.frames": 5})
    with pytest.raises(ConfigError, match=r"reward\.path = 'toon': these heads score clips of 9x48x64; .*5x48x64"):
        serial.run(config)
    assert not config.folder.exists()


def test_a_judge_that_needs_more_frames_is_refused_before_a_folder_is_made(tmp_path: Path, model: Path) -> None:
    judge = {"reward.judges.red.kind": "frame_ssim", "reward.judges.red.frames": 16}
    config = of_red(tmp_path, model, **judge)
    with pytest.raises(ConfigError, match=r"reward red: no clip of 9x48x64 .*: a clip of 9 frames .* 16 frames are"):
        serial.run(config)
    assert not config.folder.exists()
