"""The oracle: clean clips are near 100, and every defect lowers the right score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.toon.oracle import OracleScores, judge, match
from common.toon.world import ACTIONS, Defects, Shot, draw_shot, render

WALK = Shot("robot", "cave", "walk_right", 6, 1)


def scores(shot: Shot = WALK, **severities: float) -> OracleScores:
    return judge(render(shot, Defects(**severities), seed=3), shot)


@pytest.mark.parametrize("action", ACTIONS)
def test_clean_clips_are_near_100(action: str) -> None:
    rng = np.random.default_rng(5)
    shot = next(s for s in (draw_shot(rng, "train") for _ in range(200)) if s.action == action)
    clean = scores(shot)
    assert clean.identity > 97
    assert clean.motion > 97
    assert clean.smoothness > 90


@pytest.mark.parametrize(
    ("defect", "lowered"),
    [("flicker", "smoothness"), ("jitter", "smoothness"), ("freeze", "motion"), ("warp", "identity")],
)
def test_the_worse_the_defect_the_lower_the_answer(defect: str, lowered: str) -> None:
    answers = [getattr(scores(**{defect: severity}), lowered) for severity in (0.0, 0.5, 1.0)]
    assert answers[0] > answers[1] > answers[2]
    assert answers[2] < 0.6 * answers[0]


def test_a_frozen_clip_is_smooth_but_does_not_move() -> None:
    frozen = scores(freeze=1.0)
    assert frozen.motion < 1
    assert frozen.smoothness > 90
    assert frozen.identity > 90


def test_another_character_is_another_identity() -> None:
    zombie = Shot("zombie", WALK.scene, WALK.action, WALK.x, WALK.phase)
    assert judge(render(zombie), WALK).identity < 0.5 * judge(render(WALK), WALK).identity


def test_walking_the_other_way_is_no_motion() -> None:
    left = Shot(WALK.character, WALK.scene, "walk_left", 22, WALK.phase)
    assert judge(render(left), WALK).motion == 0


def test_places_and_brightness_are_found() -> None:
    clip = render(WALK)
    dark = clip.copy()
    dark[4] //= 2
    error, corner, gain = match(clip, WALK)
    assert (error < 1e-3).all()
    assert np.diff(corner[:, 0]) == pytest.approx([2] * 8, abs=0.1)  # it walks 2 pixels a frame
    assert np.allclose(gain, 1, atol=0.02)
    assert match(dark, WALK)[2][4] == pytest.approx(0.5, abs=0.02)


def test_small_changes_of_a_smeared_clip_change_its_scores_little() -> None:
    """Which single template fits a smear best is a matter of chance; the scores must not be."""
    sharp = torch.from_numpy(render(WALK)).permute(0, 3, 1, 2).float()
    smeared = functional.avg_pool2d(sharp, 9, stride=1, padding=4, count_include_pad=False).permute(0, 2, 3, 1)
    noise = torch.randn(smeared.shape, generator=torch.Generator().manual_seed(0))
    one, other = (judge((smeared + sign * noise).clamp(0, 255).to(torch.uint8).numpy(), WALK) for sign in (1, -1))
    assert one.identity < 60
    assert abs(one.smoothness - other.smoothness) < 1.5
    assert abs(one.motion - other.motion) < 0.5


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clip is \[9, 24, 32, 3\]"):
        judge(np.zeros((9, 24, 32, 3), np.uint8), WALK)
