"""The rewarder's loop against a small exchange: order, versions, clips that cannot be scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from common.config import RewardConfig
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.exchange.api import RewarderExchange, Submitted
from common.images import encode_png, first_frame
from common.messages import Prompt, Purpose, Score, ScoreTask
from rewarders.interface import Reward
from rewarders.rewarder import Rewarder


class Brightness:
    """A reward one can check by hand: the clip's mean, which refuses clips of one frame."""

    dimension = "appeal"
    digest = "a"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        self.batches.append(len(clips))
        if any(len(clip) < 2 for clip in clips):
            raise ValueError("one frame is no clip")
        return [round(float(clip.mean())) for clip in clips]


class Length:
    """The caption's length; NaN for the caption ``nan``."""

    dimension = "text"

    def __init__(self, digest: str = "b") -> None:
        self.digest = digest

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        return [math.nan if prompt.text == "nan" else float(len(prompt.text)) for prompt in prompts]


class FakeExchange:
    """Hands out tasks in order and keeps what comes back."""

    def __init__(self, tasks: Sequence[ScoreTask]) -> None:
        self.tasks = list(tasks)
        self.scores: list[tuple[str, Score]] = []

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        leased, self.tasks = self.tasks[:limit], self.tasks[limit:]
        return leased

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        self.scores += [(worker, score) for score in scores]
        return [Submitted(True) for _ in scores]


def task(index: int, grey: int, text: str = "walks", frames: int = 3, clip: bytes | None = None) -> ScoreTask:
    pixels = np.full((frames, 48, 64, 3), grey, np.uint8)
    prompt = Prompt(index, f"p{index}", text, purpose=Purpose.EVAL)
    return ScoreTask(f"{index}-0-v0", prompt, encode_mp4(pixels, 8) if clip is None else clip, index)


def values(score: Score) -> list[float]:
    return [score.values["appeal"], score.values["text"]]


def test_scores_of_mixed_prompts_in_batches() -> None:
    tasks = [task(i, 40 * i, "x" * (i + 1)) for i in range(5)]
    exchange, bright = FakeExchange(tasks), Brightness()
    rewarder = Rewarder([bright, Length()], RewardConfig(batch=2), worker="rewarder-7")
    assert [rewarder.work(cast(RewarderExchange, exchange)) for _ in range(4)] == [2, 2, 1, 0]
    assert bright.batches == [2, 2, 1]
    assert [score.candidate_id for _, score in exchange.scores] == [one.candidate_id for one in tasks]
    assert {worker for worker, _ in exchange.scores} == {"rewarder-7"}
    assert {score.reward_version for _, score in exchange.scores} == {rewarder.reward_version}
    assert {score.purpose for _, score in exchange.scores} == {Purpose.EVAL}
    for i, (_, score) in enumerate(exchange.scores):
        assert values(score) == pytest.approx([40 * i, i + 1], abs=2)


def test_unscorable_clips_are_nan_and_the_others_are_scored(caplog: pytest.LogCaptureFixture) -> None:
    tasks = [task(0, 80), task(1, 0, clip=b"no mp4"), task(2, 120, "nan"), task(3, 160, frames=1), task(4, 200)]
    scores = Rewarder([Brightness(), Length()], RewardConfig()).score(tasks)
    assert values(scores[0]) == pytest.approx([80, 5], abs=2)
    assert all(math.isnan(value) for value in values(scores[1]))
    assert scores[2].values["appeal"] == pytest.approx(120, abs=2)
    assert math.isnan(scores[2].values["text"])
    assert math.isnan(scores[3].values["appeal"])
    assert scores[3].values["text"] == 5
    assert values(scores[4]) == pytest.approx([200, 5], abs=2)
    assert "candidate 1-0-v0" in caplog.text
    assert (
        "appeal of a clip for prompt p3: judge appeal: ValueError: one frame is no clip (test_rewarder.py:"
        in caplog.text
    )


def test_nothing_but_broken_clips() -> None:
    bright = Brightness()
    scores = Rewarder([bright], RewardConfig()).score([task(0, 0, clip=b"")])
    assert math.isnan(scores[0].values["appeal"])
    assert bright.batches == []


def test_the_version_is_of_all_rewards_in_any_order() -> None:
    def version(*rewards: Reward) -> str:
        return Rewarder(rewards, RewardConfig()).reward_version

    assert version(Brightness(), Length()) == version(Length(), Brightness())
    assert version(Brightness(), Length()) != version(Brightness(), Length("c"))
    assert version(Brightness()) != version(Brightness(), Length())


def test_rewards_must_exist_and_have_unique_dimensions() -> None:
    with pytest.raises(ConfigError, match="at least one is needed"):
        Rewarder([], RewardConfig())
    with pytest.raises(ConfigError, match="dimensions must be unique"):
        Rewarder([Length(), Length()], RewardConfig())


class Trickle(FakeExchange):
    """Hands out one clip at a time, and only if the clock has advanced by a second since the last one."""

    def __init__(self, tasks: Sequence[ScoreTask]) -> None:
        super().__init__(tasks)
        self.now, self.ready, self.waits = 0.0, 0.0, []

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        if self.now < self.ready:
            return []
        self.ready = self.now + 1.0
        return super().lease_candidates(worker, min(1, limit))

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += 0.5
        return False


@pytest.mark.parametrize(("patience", "gathered"), [(0.0, 1), (1.4, 2), (2.1, 3), (99.0, 4)])
def test_a_batch_waits_for_more_clips_until_its_deadline(patience, gathered):
    exchange = Trickle([task(i, 9) for i in range(6)])
    rewarder = Rewarder([Brightness()], RewardConfig(batch=4))
    tasks = rewarder.gather(cast(RewarderExchange, exchange), patience, exchange.wait, lambda: exchange.now)
    assert [one.candidate_id for one in tasks] == [f"{i}-0-v0" for i in range(gathered)]
    assert rewarder.finish(cast(RewarderExchange, exchange), tasks)
    assert len(exchange.scores) == gathered


def test_a_stopped_rewarder_scores_the_gathered_clips():
    exchange = Trickle([task(i, 9) for i in range(6)])
    rewarder = Rewarder([Brightness()], RewardConfig(batch=4))
    assert len(rewarder.gather(cast(RewarderExchange, exchange), 99.0, lambda _: True, lambda: exchange.now)) == 1


def test_an_empty_queue_is_not_waited_for():
    exchange = Trickle([])
    rewarder = Rewarder([Brightness()], RewardConfig(batch=4))
    assert rewarder.gather(cast(RewarderExchange, exchange), 99.0, exchange.wait, lambda: exchange.now) == []
    assert exchange.waits == []


class FirstFrames(Length):
    """Keeps the images that it is given, like any judge that compares with the first frame."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[bytes | None] = []

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        self.images += [prompt.image for prompt in prompts]
        return super().score(clips, prompts)


def test_judges_see_the_first_frame_that_the_model_was_given(caplog: pytest.LogCaptureFixture) -> None:
    """Cropped to the clip; a broken image fails its clip alone."""
    wide = encode_png(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
    images = [wide, None, b"no image"]
    tasks = [
        replace(one, prompt=replace(one.prompt, image=image))
        for one, image in zip([task(index, 10 * index) for index in range(3)], images, strict=True)
    ]
    judge = FirstFrames()
    scores = Rewarder([judge], RewardConfig()).score(tasks)
    assert judge.images == [encode_png(first_frame(wide, 48, 64)), None]
    assert [math.isnan(one.values["text"]) for one in scores] == [False, False, True]
    assert scores[2].problems["text"].startswith("prompt p2: broken image")
