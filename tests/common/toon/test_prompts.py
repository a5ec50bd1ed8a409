"""Toon prompts: pure functions of (seed, ordinal), and the shot back from the id."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from common.errors import ConfigError
from common.messages import Prompt, Purpose
from common.toon.prompts import ToonPrompts, prompt_of, shot_id, shot_of
from common.toon.world import Shot, caption, combinations, render


def test_the_id_spells_the_shot() -> None:
    shot = Shot("zombie", "cave", "jump", 12, 3)
    assert shot_id(shot) == "toon-zombie-cave-jump-x12-p3"
    for one in (
        shot,
        Shot("female_adventurer", "meadow", "run_left", -4, 7),
        Shot("robot+zombie+robot", "snow", "climb", 0, 0, (0, 5, 12)),
    ):
        assert shot_of(prompt_of(one, 0)) == one


@pytest.mark.parametrize(
    "name", ["file-3", "toon-zombie-cave-jump", "toon-wolf-cave-jump-x1-p3", "toon-zombie+robot-cave-jump-x1-p3"]
)
def test_other_ids_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"prompt {name!r}: not a prompt of the toon world")):
        shot_of(Prompt(0, name, "x"))


def test_training_prompts_are_a_function_of_seed_and_ordinal() -> None:
    source = ToonPrompts(1)
    prompts = [source(ordinal) for ordinal in range(30)]
    assert [ToonPrompts(1)(ordinal) for ordinal in reversed(range(30))] == prompts[::-1]
    assert len({prompt.id for prompt in prompts}) > 25
    assert [prompt.id for prompt in prompts] != [ToonPrompts(2)(ordinal).id for ordinal in range(30)]
    pool = set(combinations("train"))
    for prompt in prompts:
        shot = shot_of(prompt)
        assert (shot.character, shot.scene, shot.action) in pool
        assert (prompt.text, prompt.purpose) == (caption(shot), Purpose.TRAIN)
        assert (prompt.character, prompt.category) == (shot.character, shot.action)
        assert prompt.image is not None
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(prompt.image))), render(shot)[0])


def test_heldout_prompts_cover_every_combination_before_repeating() -> None:
    pool = combinations("heldout")
    prompts = ToonPrompts(0).heldout(len(pool) + 24, seed=9)
    shots = [shot_of(prompt) for prompt in prompts]
    keys = [(shot.character, shot.scene, shot.action) for shot in shots]
    assert set(keys[: len(pool)]) == set(pool)
    assert keys[len(pool) :] == keys[:24]
    assert {prompt.purpose for prompt in prompts} == {Purpose.EVAL}
    assert [prompt.ordinal for prompt in prompts] == list(range(len(pool) + 24))
    assert ToonPrompts(5).heldout(10, seed=9) == prompts[:10]
    assert not set(keys) & set(combinations("train"))
