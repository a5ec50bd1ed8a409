"""Redrawing by the embedded model: a late start keeps the clip, an early one keeps the first frame."""

from __future__ import annotations

import numpy as np
import pytest

from common.models.cogvideox import open_model
from common.toon.world import Shot, caption, render
from rewarders.toon_heads.training.regenerate import AFRESH, LATEST, STEPS, SDEditAugmenter

SHOTS = [Shot("robot", "snow", "walk_right", 4), Shot("zombie", "cave", "jump", 12)]


MOST = max(STEPS)


class Dice(np.random.Generator):
    """Draws noise as any generator, but always starts at the given one of `steps`; `afresh`: without choosing it."""

    def __init__(self, start: int, steps: int = MOST, afresh: bool = False) -> None:
        super().__init__(np.random.PCG64(0))
        self.start, self.steps, self.afresh = start, steps, afresh

    def random(self) -> float:  # type: ignore[override]
        return 0.99 * AFRESH if self.afresh else AFRESH

    def choice(self, pool: tuple[int, ...]) -> int:  # type: ignore[override]
        assert self.steps in pool
        return self.steps

    def integers(self, *bounds: int) -> int:  # type: ignore[override]
        assert not self.afresh
        assert bounds == (int(LATEST * self.steps),)
        assert self.start < bounds[0]
        return self.start


@pytest.fixture(scope="module")
def redrawer() -> SDEditAugmenter:
    return SDEditAugmenter(open_model("toon"))


def errors(redrawer: SDEditAugmenter, start: int) -> np.ndarray:
    clips = np.stack([render(shot) for shot in SHOTS])
    redrawn = redrawer.redraw(clips, [caption(shot) for shot in SHOTS], Dice(start))
    assert (redrawn.shape, redrawn.dtype) == (clips.shape, np.uint8)
    return np.abs(redrawn.astype(float) - clips).mean((0, 2, 3, 4))


def test_the_earlier_the_start_the_more_is_drawn_anew(redrawer: SDEditAugmenter) -> None:
    clips = np.stack([render(shot) for shot in SHOTS])
    floor = np.abs(redrawer.reconstruct(clips).astype(float) - clips).mean()
    late, middle, early = (errors(redrawer, start) for start in (int(LATEST * MOST) - 1, 4, 0))
    assert floor < late.mean() < middle.mean() < early.mean()
    assert late.mean() < 2 * floor
    assert early[0] < 0.7 * early[1:].mean()  # the first frame is given


def test_captions_and_noise_decide(redrawer: SDEditAugmenter) -> None:
    clips = np.stack([render(SHOTS[0])] * 2)
    texts = ["a robot walks right in the snow", "a robot jumps in the snow"]
    one, other = redrawer.redraw(clips, texts, Dice(0))
    assert np.abs(one.astype(float) - other).mean() > 1
    again = redrawer.redraw(clips, texts, Dice(0))
    assert (again[0] == one).all()


def test_half_are_drawn_afresh(redrawer: SDEditAugmenter) -> None:
    clips, texts = np.stack([render(shot) for shot in SHOTS]), [caption(shot) for shot in SHOTS]
    afresh = redrawer.redraw(clips, texts, Dice(1, 2, afresh=True))
    assert (afresh == redrawer.redraw(clips, texts, Dice(0, 2))).all()


def test_few_steps_from_noise_draw_another_clip_than_many(redrawer: SDEditAugmenter) -> None:
    clips, texts = np.stack([render(shot) for shot in SHOTS]), [caption(shot) for shot in SHOTS]
    few, many = (redrawer.redraw(clips, texts, Dice(0, steps)).astype(float) for steps in (min(STEPS), MOST))
    assert np.abs(few - many).mean() > 1
