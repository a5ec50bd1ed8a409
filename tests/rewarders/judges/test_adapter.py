"""The frames that a judge gets, counted by hand, and the scaling of its values."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common.config import JudgeConfig, RewardConfig, RewardJudgeConfig, load_config
from common.data.video import clip_length, decode_clip, encode_mp4
from common.errors import ConfigError
from common.messages import Prompt, ScoreTask
from rewarders.interface import Clip, JudgeResult, JudgeUnavailableError
from rewarders.judges.adapter import AdaptedJudge, InputSpec, adapt_clip
from rewarders.judges.registry import open_judge, open_rewards
from rewarders.rewarder import rewarder_for

ASKED = Prompt(0, "p", "walks")


class Seen:
    """Keeps what it is shown; two outputs from a clip's first pixel."""

    outputs = ("low", "high")
    digest = "seen"

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        self.clips += clips
        return [{"low": float(clip.frames[0, 0, 0, 0]), "high": math.nan} for clip in clips]


def clip(frames: int, fps: float, size: tuple[int, int] = (4, 6)) -> Clip:
    """Frame i has the value i."""
    pixels = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, *size, 3))
    return Clip(pixels.copy(), fps, b"the file")


def numbers(shown: Clip) -> list[int]:
    return shown.frames[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("frames", "fps", "needs", "chosen", "rate"),
    [
        (9, 8.0, InputSpec(), range(9), 8.0),
        (9, 8.0, InputSpec(fps=8), range(9), 8.0),
        (9, 23.976, InputSpec(fps=24), range(9), 23.976),
        (9, 8.0, InputSpec(fps=2), (0, 4, 8), 2.0),
        (8, 8.0, InputSpec(fps=2), (0, 4), 2.0),  # 0.5 s each: a third one would begin where the clip ends
        (9, 8.0, InputSpec(fps=3), (0, 3, 5, 8), 3.0),  # 0, 2.67, 5.33, 8
        (9, 8.0, InputSpec(frames=5), (0, 2, 4, 6, 8), 4.0),
        (9, 8.0, InputSpec(frames=1), (0,), 1.0),
        (17, 8.0, InputSpec(fps=4, frames=3), (0, 8, 16), 1.0),
        (49, 8.0, InputSpec(fps=2, multiple=2), (0, 4, 9, 13, 17, 22, 26, 31, 35, 39, 44, 48), 11 / 6),  # 12 of 13
        (16, 8.0, InputSpec(fps=2, multiple=2), (0, 4, 8, 12), 2.0),
        (18, 8.0, InputSpec(fps=2, multiple=2), (0, 5, 11, 16), 1.5),  # 0, 4 ... 16 would be five
    ],
)
def test_frames_in_time(frames, fps, needs, chosen, rate):
    shown = adapt_clip(clip(frames, fps), needs)
    assert numbers(shown) == list(chosen)
    assert shown.fps == pytest.approx(rate)


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        (InputSpec(fps=16), "a clip of 8 frames per second; 16 are needed"),
        (InputSpec(frames=16), "a clip of 9 frames at 8 per second; 16 frames are needed"),
        (InputSpec(fps=2, frames=4), "a clip of 3 frames at 2 per second; 4 frames are needed"),
        (InputSpec(fps=2, multiple=4), "a clip of 3 frames at 2 per second; 4 frames are needed"),
    ],
)
def test_frames_are_never_interpolated(needs, line):
    with pytest.raises(ValueError, match=line):
        adapt_clip(clip(9, 8.0), needs)


def test_a_number_of_frames_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="frames = 5: must be a multiple of 2"):
        AdaptedJudge(Seen(), JudgeConfig(kind="x", frames=5), InputSpec(fps=2, multiple=2))
    assert AdaptedJudge(Seen(), JudgeConfig(kind="x", frames=6), InputSpec(fps=2, multiple=2)).needs.frames == 6


def test_size_and_the_file_that_belongs_to_it():
    given = clip(9, 8.0)
    assert adapt_clip(given, InputSpec(size=(4, 6))) is given
    small = adapt_clip(given, InputSpec(size=(2, 3), fps=2))
    assert small.frames.shape == (3, 2, 3, 3)
    assert numbers(small) == [0, 4, 8]
    assert small.file is None  # the file has other frames
    assert clip_length(adapt_clip(clip(9, 8.0, (48, 64)), InputSpec(fps=2)).mp4()) == (3, 2.0)


def test_values_are_scaled_to_100_and_not_clamped():
    adapted = AdaptedJudge(Seen(), JudgeConfig(kind="x", fps=4, low=1, high=5))
    (found,) = adapted.judge([clip(9, 8.0)], [ASKED])
    assert isinstance(found, dict)
    assert found["low"] == -25.0
    assert math.isnan(found["high"])


def test_what_a_judge_is_shown_is_part_of_its_digest():
    digests = {AdaptedJudge(Seen(), JudgeConfig(kind="x", fps=fps)).digest for fps in (0, 2, 4)}
    assert len(digests) == 3
    assert AdaptedJudge(Seen(), JudgeConfig(kind="x", fps=2)).digest in digests


MINE = """
from rewarders.judges.adapter import InputSpec

class Bright:
    dimension, digest, needs = "brightness", "1", InputSpec(frames=2, low=0, high=255)
    def __init__(self, judge, device):
        self.path, self.device = judge.path, device
    def score(self, clips, prompts):
        assert all(len(clip) == 2 for clip in clips)
        return [float(clip.mean()) for clip in clips]

class Nothing:
    def __init__(self, judge, device): ...

class NoDigest(Nothing):
    dimension = "brightness"
    def score(self, clips, prompts):
        return [1.0 for _ in clips]

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's."""
    (tmp_path / "my_judges.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_judges", raising=False)
    return "my_judges"


def test_a_class_of_the_users_beside_the_heads(mine):
    config = load_config(None, {"reward.judges.light.kind": f"{mine}:Bright", "reward.feedback": "light"}).reward
    frames = np.full((9, 48, 64, 3), 51, np.uint8)
    task = ScoreTask("0-0-v0", ASKED, encode_mp4(frames, 8))
    (score,) = rewarder_for(open_rewards(config), config).score([task])
    assert score.values["light"] == pytest.approx(20.0, abs=0.5)
    assert len(score.values) == 7


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("beauty", r"reward\.judges\.a: kind = 'beauty': must be .* or a class as package\.module:Class"),
        ("no_such_module:A", "cannot be imported: No module named 'no_such_module'"),
        ("{mine}:Beauty", "my_judges has no class Beauty"),
        ("{mine}:number", "my_judges has no class number"),
        ("{mine}:Nothing", "must be a Reward or a Judge"),
        ("{mine}:NoDigest", "kind = 'my_judges:NoDigest': has no digest, which every Reward and Judge needs"),
    ],
)
def test_a_wrong_kind_gets_one_line(mine, kind, line):
    with pytest.raises(ConfigError, match=line):
        open_judge("a", JudgeConfig(kind=kind.format(mine=mine)))


class Broken(Seen):
    """Says so, in three ways."""

    outputs = ("one",)

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        if self.how == "late":
            self.clips += clips
            raise JudgeUnavailableError("no answer in 3 s")
        return ["too dark" if clip.frames.max() < 100 else {"one": 50.0} for clip in clips]


def test_reasons_are_kept_and_other_clips_are_scored():
    judges = [Broken("picky")]
    tasks = [
        ScoreTask(str(grey), ASKED, encode_mp4(np.full((3, 48, 64, 3), grey, np.uint8), 8)) for grey in (20, 200)
    ] + [ScoreTask("broken", ASKED, b"no video")]
    config = RewardConfig(path="", judges={"one": RewardJudgeConfig(kind="x")})
    dark, light, broken = rewarder_for(judges, config).score(tasks)
    assert (math.isnan(dark.values["one"]), dark.problems) == (True, {"one": "too dark"})
    assert (light.values, light.problems) == ({"one": 50.0}, {})
    assert "not a readable video" in broken.problems["one"]


def test_an_unavailable_judge_is_not_retried_clip_by_clip():
    judge = Broken("late")
    config = RewardConfig(path="", judges={"one": RewardJudgeConfig(kind="x")})
    file = encode_mp4(np.full((3, 48, 64, 3), 9, np.uint8), 8)
    scores = rewarder_for([judge], config).score([ScoreTask(str(i), ASKED, file) for i in range(3)])
    assert [score.problems for score in scores] == [{"one": "no answer in 3 s"}] * 3
    assert len(judge.clips) == 3
    assert decode_clip(file).shape == judge.clips[0].frames.shape


def test_a_judge_that_writes_into_its_pixels_changes_them_for_nobody():
    class Blackens(Seen):
        def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
            for clip in clips:
                clip.frames[:] = 0
            return [{"seen": 1.0} for _ in clips]

    shown = Clip(np.full((3, 8, 8, 3), 200, np.uint8), 8.0)
    AdaptedJudge(Blackens(), JudgeConfig(kind="a:B")).judge([shown], [Prompt(0, "a", "a")])
    assert shown.frames.min() == 200
