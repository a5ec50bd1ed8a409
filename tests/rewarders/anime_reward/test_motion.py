"""Motion: the paper's two prompts, six levels between them, and a score that agrees with the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from common.errors import ConfigError
from common.toon.prompts import prompt_of
from common.toon.world import Shot, render
from rewarders.anime_reward import PromptedMotion
from rewarders.anime_reward.heads import pack
from rewarders.anime_reward.motion import LEVELS, PROMPTS, MotionHead, level_targets, levels_between
from tests.support.tiny_encoders import tiny_clip

Models = Mapping[str, dict[str, str]]
SHOT = Shot("robot", "snow", "walk_right", 2)
CLIP, PROMPT = render(SHOT), prompt_of(SHOT, 0)
LARGE, STILL = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # embeddings at a right angle: the levels are 18 degrees apart


def head(temperature: float) -> MotionHead:
    """A head with an adapter that changes nothing: a clip's embedding is the mean of its frames'."""
    made = MotionHead(levels_between(LARGE, STILL), temperature, 3, 1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.zero_()
    return made.eval()


def video(degrees: float) -> torch.Tensor:
    """A row of two equal frames at an angle from `STILL`."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return pack(torch.stack([angle.cos(), angle.sin()]).expand(2, 2), 3)[None]


def test_the_prompts_are_the_papers() -> None:
    assert PROMPTS == (
        "The protagonist has a large range of movement, such as running, jumping, dancing, or waving arms.",
        "The protagonist remains stationary in the video with no apparent movement.",
    )
    assert LEVELS == 6


def test_a_text_tower_that_cannot_tell_the_prompts_apart_is_refused(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    torch.nn.init.zeros_(model.text_projection.weight)
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match=f"clip model {folder}: gives both motion prompts the same embedding"):
        PromptedMotion.create({"clip": folder})


def test_the_levels_divide_the_arc_between_the_prompts() -> None:
    assert torch.allclose(
        levels_between(LARGE, STILL),
        torch.tensor(  # cosine and sine of 0, 18, 36, 54, 72 and 90 degrees
            [[1, 0], [0.95106, 0.30902], [0.80902, 0.58779], [0.58779, 0.80902], [0.30902, 0.95106], [0, 1]]
        ),
        atol=1e-5,
    )


@torch.no_grad()
def test_the_score_is_the_expected_level() -> None:
    """By hand, for a clip that is like the most motion, at temperature 10. Cosines: the sines of 0, 18, ... 90 degrees.

    exp(10 cos): 1, 21.98, 357.04, 3262.2, 13501.6, 22026.5; their sum: 39170.4.
    (0 + 1 * 21.98 + 2 * 357.04 + 3 * 3262.2 + 4 * 13501.6 + 5 * 22026.5) / 39170.4 = 4.45903 of 5 levels: 89.1805.
    """
    assert head(10)(video(90)).item() == pytest.approx(89.1805, abs=0.005)
    assert head(10)(video(0)).item() == pytest.approx(100 - 89.1805, abs=0.005)  # the mirror image
    assert head(10)(video(45)).item() == pytest.approx(50, abs=1e-3)
    assert head(0)(video(90)).item() == pytest.approx(50)  # equal probabilities


@torch.no_grad()
def test_a_level_in_the_middle_scores_in_the_middle() -> None:
    """At CLIP's temperature. Most motion against none alone would give it 100, since 100 (sin 54 - cos 54) = 22."""
    for level in range(1, 5):
        assert head(100)(video(18.0 * level)).item() == pytest.approx(20 * level, abs=0.2)


def test_a_rating_between_two_levels_is_split_between_them() -> None:
    """Ratings 1, 2, 3, 4, 5 are scores 0, 25, 50, 75, 100 and levels 0, 1.25, 2.5, 3.75, 5."""
    targets = level_targets(torch.tensor([0.0, 25.0, 50.0, 75.0, 100.0]))
    assert targets.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 0.75, 0.25, 0, 0, 0],
        [0, 0, 0.5, 0.5, 0, 0],
        [0, 0, 0, 0.25, 0.75, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    scores = torch.linspace(0, 100, 41)
    assert torch.allclose(level_targets(scores) @ torch.arange(0.0, 101, 20), scores, atol=1e-4)


def test_training_leads_to_the_rating(models: Models) -> None:
    """The loss is cross-entropy with the targets, and a head that has learned a rating scores it."""
    reward = PromptedMotion.create(models["PromptedMotion"])
    clips = [CLIP, np.repeat(CLIP[:1], 9, 0), CLIP[::-1].copy()]
    rows, wanted = reward.features(clips, [PROMPT] * 3), torch.tensor([75.0, 10.0, 50.0])
    chances = reward.head.logits(rows).log_softmax(1)
    by_hand = -(0.25 * chances[0, 3] + 0.75 * chances[0, 4]) / 1
    assert torch.isclose(reward.loss(rows[:1], wanted[:1]), by_hand)
    optimizer = torch.optim.Adam(reward.head.parameters(), lr=3e-3)
    reward.head.train()
    for _ in range(300):
        optimizer.zero_grad()
        reward.loss(rows, wanted).backward()
        optimizer.step()
    reward.head.eval()
    assert reward.head(rows).tolist() == pytest.approx(wanted.tolist(), abs=5)
