"""Redrawing by the embedded model: a late start keeps the clip, an early one keeps the first frame."""

from __future__ import annotations

import numpy as np
import pytest

from common.models.cogvideox import open_model
from common.toon.world import Shot, caption, render
from rewarders.toon_heads.training.regenerate import FROM_NOISE, LATEST_START, STEPS, SDEditAugmenter

SHOTS = [Shot("robot", "snow", "walk_right", 4), Shot("zombie", "cave", "jump", 12)]


MOST = max(STEPS)


class Dice(np.random.Generator):
    """Draws noise like any generator, but starts at the given one of `steps`; `from_noise`: without choosing it."""

    def __init__(self, start: int, steps: int = MOST, from_noise: bool = False) -> None:
        super().__init__(np.random.PCG64(0))
        self.start, self.steps, self.from_noise = start, steps, from_noise

    def random(self) -> float:  # type: ignore[override]
        return 0.99 * FROM_NOISE if self.from_noise else FROM_NOISE

    def choice(self, pool: tuple[int, ...]) -> int:  # type: ignore[override]
        assert self.steps in pool
        return self.steps

    def integers(self, *bounds: int) -> int:  # type: ignore[override]
        assert not self.from_noise
        assert bounds == (int(LATEST_START * self.steps),)
        assert self.start < bounds[0]
        return self.start


@pytest.fixture(scope="module")
def augmenter() -> SDEditAugmenter:
    return SDEditAugmenter(open_model("toon"))


def errors(augmenter: SDEditAugmenter, start: int) -> np.ndarray:
    clips = np.stack([render(shot) for shot in SHOTS])
    regenerated = augmenter.regenerate(clips, [caption(shot) for shot in SHOTS], Dice(start))
    assert (regenerated.shape, regenerated.dtype) == (clips.shape, np.uint8)
    return np.abs(regenerated.astype(float) - clips).mean((0, 2, 3, 4))


def test_an_earlier_start_redraws_more(augmenter: SDEditAugmenter) -> None:
    clips = np.stack([render(shot) for shot in SHOTS])
    floor = np.abs(augmenter.reconstruct(clips).astype(float) - clips).mean()
    late, middle, early = (errors(augmenter, start) for start in (int(LATEST_START * MOST) - 1, 4, 0))
    assert floor < late.mean() < middle.mean() < early.mean()
    assert late.mean() < 2 * floor
    assert early[0] < 0.7 * early[1:].mean()  # the first frame is given


def test_captions_and_noise_decide(augmenter: SDEditAugmenter) -> None:
    clips = np.stack([render(SHOTS[0])] * 2)
    texts = ["a robot walks right in the snow", "a robot jumps in the snow"]
    one, other = augmenter.regenerate(clips, texts, Dice(0))
    assert np.abs(one.astype(float) - other).mean() > 1
    again = augmenter.regenerate(clips, texts, Dice(0))
    assert (again[0] == one).all()


def test_half_of_the_clips_start_from_noise(augmenter: SDEditAugmenter) -> None:
    clips, texts = np.stack([render(shot) for shot in SHOTS]), [caption(shot) for shot in SHOTS]
    from_noise = augmenter.regenerate(clips, texts, Dice(1, 2, from_noise=True))
    assert (from_noise == augmenter.regenerate(clips, texts, Dice(0, 2))).all()


def test_few_steps_from_noise_draw_another_clip_than_many(augmenter: SDEditAugmenter) -> None:
    clips, texts = np.stack([render(shot) for shot in SHOTS]), [caption(shot) for shot in SHOTS]
    few, many = (augmenter.regenerate(clips, texts, Dice(0, steps)).astype(float) for steps in (min(STEPS), MOST))
    assert np.abs(few - many).mean() > 1
