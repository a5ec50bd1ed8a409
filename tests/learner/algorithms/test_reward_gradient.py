"""ReFL, InstructVideo and VADER: which steps have a gradient, and which frames count; by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from common.messages import Selection
from learner.algorithms.instruct_video import InstructVideo
from learner.algorithms.refl import Refl
from learner.algorithms.reward_gradient import RewardGradient
from learner.algorithms.v_prediction import generator
from learner.algorithms.vader import Vader

STEPS, FRAMES = 20, 9


@dataclass
class Ordinals:
    """As much of a batch as the algorithms look at."""

    ordinals: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ordinals)


@dataclass
class Recorded:
    """A rollout whose clips are numbers: `denoise` and `clean` are recorded, frame f of every clip has reward f."""

    ordinals: tuple[int, ...] = (0, 1)
    step: int = 1
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    timesteps: range = range(STEPS)

    def __post_init__(self) -> None:
        self.batch, self.weights = Ordinals(self.ordinals), torch.tensor([[1.0], [3.0]])

    def draws(self, *what: int | str) -> torch.Generator:
        return generator(0, self.step, *what)

    def noise(self) -> str:
        return "noise"

    def noisy(self, candidate: int, first: int) -> str:
        self.calls.append(("noisy", candidate, first))
        return "noisy"

    def denoise(self, x: str, first: int = 0, last: int | None = None, *, gradient_steps: int) -> str:
        self.calls.append(("denoise", x, first, last, gradient_steps))
        return "denoised"

    def clean(self, x: str, index: int) -> str:
        self.calls.append(("clean", x, index))
        return "clean"

    def reward(self, latents: str) -> torch.Tensor:
        self.calls.append(("reward", latents))
        return torch.arange(float(FRAMES)).expand(len(self.ordinals), -1)


def made(kind: type[RewardGradient], **settings: float) -> Any:
    return kind(kind.Config(name="any", **settings))


@pytest.mark.parametrize("kind", [Refl, Vader, InstructVideo])
def test_the_first_candidate_is_kept_whatever_its_reward(kind: type[RewardGradient]) -> None:
    assert made(kind).select([0.25, 0.75]) == Selection((0,), (1.0,))
    assert made(kind).select([0.5]) == Selection((0,), (1.0,))  # nothing is compared: no tie
    assert made(kind).kept(4) == 1
    assert not kind.needs_reference


def test_the_loss_is_minus_the_weighted_reward() -> None:
    """Frames 0 .. 8 have the mean 4; weights 1 and 3."""
    output = made(Refl).loss(Recorded())
    assert output.loss.tolist() == [-4.0, -12.0]
    assert output.metrics["rollout_reward"].tolist() == [4.0, 4.0]


def test_refl_predicts_the_clip_from_one_of_the_last_steps() -> None:
    """A quarter of 20 steps: 15 .. 19. Everything before has no gradient."""
    stops = set()
    for step in range(60):
        rollout = Recorded(step=step)
        made(Refl).reward(rollout)
        (_, start, first, stop, gradient), clean, reward = rollout.calls
        assert (start, first, gradient) == ("noise", 0, 0)
        assert clean == ("clean", "denoised", stop)
        assert reward == ("reward", "clean")
        stops.add(stop)
    assert stops == {15, 16, 17, 18, 19}


def test_at_least_the_last_step_is_late() -> None:
    rollout = Recorded()
    made(Refl, last_steps=0.01).reward(rollout)
    assert rollout.calls[1] == ("clean", "denoised", STEPS - 1)


def test_vader_takes_the_whole_chain() -> None:
    rollout = Recorded()
    assert made(Vader, frames=0, gradient_steps=2).reward(rollout).tolist() == [4.0, 4.0]
    assert rollout.calls == [("denoise", "noise", 0, None, 2), ("reward", "denoised")]


def test_vader_scores_random_frames_of_each_clip() -> None:
    """Frame f has reward f, so the reward of one frame is its number."""
    shown = [made(Vader).reward(Recorded(step=step)).tolist() for step in range(100)]
    assert {frame for pair in shown for frame in pair} == set(range(FRAMES))
    assert sum(one != other for one, other in shown) > 60
    alone = made(Vader).reward(Recorded((1,), step=7))
    assert alone[0] == shown[7][1]  # a draw is the group's, whatever batch it is in
    two = made(Vader, frames=2).reward(Recorded())
    assert all((2 * value).item().is_integer() and 0.5 <= value <= 7.5 for value in two)


def test_instruct_video_repeats_a_part_of_the_chain() -> None:
    """0.6 of 20 steps are 12: from step 8."""
    rollout = Recorded()
    made(InstructVideo).reward(rollout)
    assert rollout.calls == [("noisy", 0, 8), ("denoise", "noisy", 8, None, 1), ("reward", "denoised")]


def test_a_frame_of_each_segment_counts_less_far_from_the_middle() -> None:
    """9 frames in 4 segments of 2: frames 0-1, 2-3, 4-5, 6-7; the middle is frame 4. Weights exp(-|g - 4|) / 4."""
    seen = set()
    for step in range(80):
        weights = made(InstructVideo).frame_weights(Recorded(step=step), FRAMES)
        for row in weights:
            shown = row.nonzero()[:, 0].tolist()
            assert [frame // 2 for frame in shown] == [0, 1, 2, 3]
            assert row[shown].tolist() == pytest.approx([math.exp(-abs(frame - 4)) / 4 for frame in shown])
            seen |= set(shown)
    assert seen == set(range(8))


def test_without_attenuation_all_segments_count_the_same() -> None:
    """Each frame's reward is its number, so four frames give their mean."""
    algorithm, rollout = made(InstructVideo, attenuation=0.0), Recorded()
    weights = algorithm.frame_weights(rollout, FRAMES)
    shown = [row.nonzero()[:, 0].float().mean().item() for row in weights]
    assert algorithm.reward(rollout).tolist() == pytest.approx(shown)


def test_more_segments_than_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"algorithm.segments = 10: a clip has 9 frames, at least one for each"):
        made(InstructVideo, segments=10).reward(Recorded())
