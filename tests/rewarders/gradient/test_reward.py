"""The run's reward as a differentiable function of pixels, against the scores that rewarders give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from common.config import RewardConfig, load_config
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from common.reward_composition import clip_reward
from common.toon.world import FRAMES, HEIGHT, WIDTH
from rewarders.gradient.reward import check_gradients, open_gradients
from rewarders.head_files import load_heads
from rewarders.judges.adapter import InputSpec
from rewarders.judges.registry import open_rewards
from rewarders.toon_heads.heads import ToonHead, to_pixels

ME = "tests.rewarders.gradient.test_reward"


class Level:
    """The mean level of a clip, 0..255; with a gradient."""

    dimension = "level"
    digest = "level"
    needs = InputSpec(low=0.0, high=255.0)

    def __init__(self, judge: Any, device: str) -> None:
        del judge, device

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        return [float(clip.mean()) for clip in clips]

    def frame_scores(self, clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        return 255 * clips.mean((2, 3, 4))


class Short(Level):
    """Needs three frames."""

    needs = InputSpec(frames=3, low=0.0, high=255.0)


def clips(count: int = 2) -> torch.Tensor:
    """uint8 [count, F, H, W, 3]: noise with a moving square."""
    drawn = torch.randint(0, 256, (count, FRAMES, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(1))
    for frame in range(FRAMES):
        drawn[:, frame, 10:20, 4 * frame : 4 * frame + 12] = 200
    return drawn.byte()


def prompts(pixels: torch.Tensor) -> list[Prompt]:
    """One prompt has a first frame of its own; the other compares with the clip's frame 0."""
    image = encode_png(pixels[1, 0].numpy())
    return [Prompt(0, "a", "a robot walks right", image), Prompt(1, "b", "a cat jumps")]


def config(**flags: Any) -> RewardConfig:
    return load_config(flags={f"reward.{name}": value for name, value in flags.items()}).reward


@pytest.mark.parametrize("head", load_heads("toon"), ids=lambda head: head.dimension)
def test_the_mean_over_the_frames_is_the_heads_score(head: ToonHead) -> None:
    pixels = clips()
    asked = prompts(pixels)
    frames = head.frame_scores(to_pixels(pixels), asked)
    assert frames.shape == (2, FRAMES)
    scores = head.score(list(pixels.numpy()), asked)
    assert frames.mean(1).tolist() == pytest.approx(scores, abs=2e-3)


def test_the_gradient_points_to_a_higher_reward() -> None:
    """A small step along the gradient changes R by its length squared times the step."""
    pixels = clips(1)
    gradients = open_gradients(config())
    x = to_pixels(pixels).mul(0.8).add(0.1).requires_grad_()
    value = gradients(x, prompts(clips())[:1]).mean()
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.norm() > 0
    size = 0.02 / gradient.norm()
    with torch.no_grad():
        moved = gradients(x + size * gradient, prompts(clips())[:1]).mean() - value
    assert moved.item() == pytest.approx((size * gradient.square().sum()).item(), rel=0.2)


def test_the_reward_is_the_one_that_selects() -> None:
    """Weights and a judge's range count the same as for a scored clip."""
    settings = config(**{"weights.motion": 3.0, "judges.lit.kind": f"{ME}:Level", "judges.lit.weight": 2.0})
    pixels = clips()
    asked = prompts(pixels)
    found = open_gradients(settings)(to_pixels(pixels), asked).mean(1).tolist()
    for row in range(2):
        scores: dict[str, float] = {}
        for reward in open_rewards(settings):
            if isinstance(reward, ToonHead):
                scores[reward.dimension] = reward.score([pixels[row].numpy()], [asked[row]])[0]
        scores["lit"] = 100 * float(pixels[row].numpy().mean()) / 255
        assert found[row] == pytest.approx(clip_reward(settings, scores), abs=1e-4)


def test_one_feedback_alone() -> None:
    settings = config(**{"path": "", "judges.lit.kind": f"{ME}:Level", "feedback": "lit"})
    assert check_gradients(settings) == {"lit": 1.0}
    half = torch.full((1, FRAMES, 3, HEIGHT, WIDTH), 0.5)
    assert open_gradients(settings)(half, [Prompt(0, "a", "a")]).tolist() == [[pytest.approx(0.5)] * FRAMES]


@pytest.mark.parametrize("kind", ["frame_ssim", "videoscore"])
def test_a_reward_without_a_gradient_is_refused(kind: str) -> None:
    settings = config(**{"path": "", "judges.own.kind": kind, "judges.own.path": "nowhere"})
    with pytest.raises(ConfigError, match=r"reward own: \w+ has no gradient, which the algorithm needs; the heads"):
        open_gradients(settings)


def test_an_output_of_a_judge_without_a_gradient_is_refused() -> None:
    settings = config(**{"path": "", "feedback": "vs.temporal", "judges.vs.kind": "videoscore", "judges.vs.path": "x"})
    with pytest.raises(ConfigError, match=r"reward vs.temporal: VideoScore has no gradient"):
        check_gradients(settings)


def test_a_reward_without_weight_needs_no_gradient() -> None:
    settings = config(**{"judges.own.kind": "frame_ssim", "judges.own.weight": 0.0})
    assert "own" not in check_gradients(settings)


def test_a_judge_that_needs_other_frames_is_refused() -> None:
    settings = config(**{"path": "", "judges.own.kind": f"{ME}:Short"})
    with pytest.raises(
        ConfigError, match=r"reward.judges.own: fps, frames and size: a gradient needs the clip as it is"
    ):
        open_gradients(settings)


def test_a_clip_of_another_size_is_refused() -> None:
    head = load_heads("toon")[0]
    assert isinstance(head, ToonHead)
    with pytest.raises(ValueError, match=r"clips are \[1, 5, 3, 48, 64\], not"):
        head.frame_scores(torch.zeros(1, 5, 3, 48, 64), [Prompt(0, "a", "a")])
