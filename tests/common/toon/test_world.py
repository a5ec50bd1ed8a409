"""The renderer: its clips, its defects and the truth about them, its splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.toon import world
from common.toon.world import (
    ACTIONS,
    CHARACTERS,
    DEFECTS,
    DIMENSIONS,
    SCENES,
    Defects,
    Shot,
    background,
    caption,
    colour_mix,
    combinations,
    draw_defects,
    draw_shot,
    render,
    sprite,
    start_x,
    truth,
)

WALK = Shot("zombie", "cave", "walk_right", 4, 2)
LOWERS = {
    "flicker": "smoothness",
    "jitter": "smoothness",
    "freeze": "motion",
    "warp": "appeal",
    "wrong": "text",
    "drift": "image",
    "swap": "character",
}


def only(name: str, severity: float) -> Defects:
    return Defects(**{name: severity})


def centre(clip: np.ndarray, scene: str) -> np.ndarray:
    """The figure's horizontal centre per frame: the mean column of what differs from the background."""
    differs = np.abs(clip.astype(float) - background(scene)).max(-1) > 12
    columns = np.arange(clip.shape[2])
    return np.array([(frame * columns).sum() / frame.sum() for frame in differs])


def test_the_sprites_are_those_that_are_drawn_and_their_licence() -> None:
    characters = {f"characters/{name}" for name in CHARACTERS}
    tiles = {f"tiles/{tile}.png" for scene in SCENES.values() for tile in (scene.ground, scene.prop)}
    shipped = {str(file.relative_to(world.SPRITES)) for file in world.SPRITES.rglob("*") if file.is_file()}
    drawn = {name for name in shipped if name.startswith("characters/")}
    assert {name.rpartition("/")[0] for name in drawn} == characters
    assert len(drawn) == len(CHARACTERS) * len(world.POSES)
    assert shipped - drawn == tiles | {"LICENSE.txt"}
    assert "CC0" in (world.SPRITES / "LICENSE.txt").read_text()


def test_a_clean_clip_is_worth_100_everywhere() -> None:
    assert truth(Defects()) == dict.fromkeys(DIMENSIONS, 100.0)


def test_every_defect_is_known() -> None:
    assert set(LOWERS) == set(DEFECTS)
    assert set(LOWERS.values()) == set(DIMENSIONS)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_lowers_its_dimension_alone(name: str) -> None:
    assert truth(only(name, 0.3)) == dict.fromkeys(DIMENSIONS, 100.0) | {LOWERS[name]: 70.0}


def test_smoothness_is_the_worse_of_its_two_defects() -> None:
    assert truth(Defects(flicker=0.25, jitter=0.75))["smoothness"] == 25.0


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", DEFECTS)
def test_the_first_frame_is_clean_and_the_rest_is_not(name: str, action: str) -> None:
    shot = Shot("robot", "snow", action, 8)
    clean = render(shot)
    assert (clean.shape, clean.dtype) == ((9, 48, 64, 3), np.uint8)
    for seed in range(5):
        bad = render(shot, only(name, 1.0), seed)
        assert np.array_equal(bad[0], clean[0])
        assert not np.array_equal(bad, clean)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_worse_defect_is_seen_more(name: str) -> None:
    clean = render(WALK).astype(float)
    mild, strong = (np.abs(render(WALK, only(name, severity), 3) - clean).mean() for severity in (0.25, 1.0))
    assert strong > 1.2 * mild > 0


def test_rendering_is_a_function_of_its_arguments() -> None:
    defects = Defects(flicker=0.5, jitter=0.5, swap=0.5)
    assert np.array_equal(render(WALK, defects, 1), render(WALK, defects, 1))
    assert not np.array_equal(render(WALK, defects, 1), render(WALK, defects, 2))
    assert np.array_equal(render(WALK, seed=1), render(WALK, seed=2))  # nothing is left to the dice in a clean clip


def test_a_walk_moves_and_a_freeze_does_not() -> None:
    walked = centre(render(WALK), "cave")
    assert walked[-1] - walked[0] == pytest.approx(16, abs=2)  # 8 steps of 2 pixels
    left = centre(render(Shot("zombie", "cave", "walk_left", 24)), "cave")
    assert left[-1] - left[0] == pytest.approx(-16, abs=2)
    frozen = render(WALK, Defects(freeze=1.0))
    assert all(np.array_equal(frame, frozen[0]) for frame in frozen)
    half = centre(render(WALK, Defects(freeze=0.5)), "cave")
    assert half[-1] - half[0] == pytest.approx(8, abs=2)


def test_drift_changes_the_background_alone_and_ends_in_another_scene() -> None:
    clip = render(WALK, Defects(drift=1.0), 4)
    corner = clip[-1, :4, :4].astype(float)
    assert any(np.abs(corner - background(scene)[:4, :4]).max() <= 1 for scene in SCENES if scene != "cave")
    assert np.abs(clip[4, :4, :4] - background("cave")[:4, :4]).max() > 5


def test_swap_shows_another_character_for_its_share_of_the_frames() -> None:
    for seed in range(8):
        bad = render(WALK, Defects(swap=0.5), seed)
        changed = [not np.array_equal(frame, clean) for frame, clean in zip(bad, render(WALK), strict=True)]
        assert sum(changed) == 4
        first = changed.index(True)
        assert all(changed[first : first + 4])


def test_wrong_begins_late_and_lasts_to_the_end() -> None:
    bad, clean = render(WALK, Defects(wrong=0.25), 1), render(WALK)
    assert np.array_equal(bad[:7], clean[:7])
    assert not np.array_equal(bad[7], clean[7])
    assert not np.array_equal(bad[8], clean[8])


def test_new_casts_are_made_of_parts() -> None:
    """Head from row 0, shirt from row 29, legs from row 38."""
    mixed = sprite("robot+zombie+male_person", "walk1")
    for donor, rows in (("robot", slice(0, 29)), ("zombie", slice(29, 38)), ("male_person", slice(38, 48))):
        assert np.array_equal(mixed[rows], sprite(donor, "walk1")[rows])
    assert np.array_equal(sprite("robot+robot+robot", "jump"), sprite("robot", "jump"))


def test_a_look_recolours_parts_of_the_figure_alone() -> None:
    own, other = render(WALK), render(replace(WALK, look=(7, 8, 9)))
    outside = np.abs(own.astype(float) - background("cave")).max((0, 3)) == 0
    assert outside.any()
    faint = 6  # a soft edge may round to the background in one colour and not in another
    assert np.abs(own[:, outside].astype(int) - other[:, outside]).max() <= faint
    drawn, new = sprite("zombie", "idle"), sprite("zombie", "idle", look=(0, 7, 0))
    assert np.array_equal(drawn[..., 3], new[..., 3])
    assert np.array_equal(drawn[:29], new[:29])
    assert np.array_equal(drawn[38:], new[38:])
    assert new[33, 18, :3] == pytest.approx((colour_mix(7) @ drawn[33, 18, :3]).clip(0, 255), abs=1e-3)


def test_colours_are_mixes_of_the_old_ones() -> None:
    mixes = np.stack([colour_mix(seed) for seed in range(1, 50)])
    assert (mixes >= 0).all()
    sums = mixes.sum(2)
    assert 0.4 <= sums.min() < 0.5
    assert 1.1 < sums.max() <= 1.2 + 1e-6
    assert len(np.unique(mixes.round(3), axis=0)) == len(mixes)


def test_splits_are_disjoint_complete_and_cover_every_part() -> None:
    train, heldout = set(combinations("train")), set(combinations("heldout"))
    assert not train & heldout
    assert (len(train), len(heldout)) == (216, 72)
    assert len(train | heldout) == len(CHARACTERS) * len(SCENES) * len(ACTIONS)
    for part, names in enumerate((CHARACTERS, SCENES, ACTIONS)):
        assert {key[part] for key in train} == set(names)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shots_stay_in_their_split_and_in_the_frame(split: str) -> None:
    rng, pool = np.random.default_rng(0), set(combinations(split))
    for _ in range(100):
        shot = draw_shot(rng, split)
        assert (shot.character, shot.scene, shot.action) in pool
        ends = shot.x + ACTIONS[shot.action].path()[:, 0]
        assert ends.min() >= -4
        assert ends.max() <= world.WIDTH - world.SPRITE_WIDTH + 4
    key = combinations(split)[5]
    shot = draw_shot(rng, split, index=5 + len(pool))
    assert (shot.character, shot.scene, shot.action) == key


def test_start_x_is_on_the_grid_and_reaches_both_ends() -> None:
    rng = np.random.default_rng(0)
    assert {start_x("run_right", rng) for _ in range(200)} == {-4, 0}
    assert {start_x("run_left", rng) for _ in range(200)} == {28, 32}
    assert {start_x("walk_right", rng) for _ in range(200)} == {-4, 0, 4, 8, 12, 16}


def test_captions_say_who_what_and_where() -> None:
    assert caption(Shot("female_person", "snow", "walk_right", 0)) == "a female person walks right in the snow"
    every = [Shot(*key, 0) for split in ("train", "heldout") for key in combinations(split)]  # type: ignore[arg-type]
    for shot in every:
        text = caption(shot)
        who = [name for name in CHARACTERS if text.startswith(f"a {name.replace('_', ' ')} ")]
        what = [name for name, action in ACTIONS.items() if f" {action.phrase} " in text]
        where = [name for name, scene in SCENES.items() if text.endswith(scene.phrase)]
        assert (who, what, where) == ([shot.character], [shot.action], [shot.scene])


def test_drawn_defects_are_one_at_most_and_in_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_defects(rng) for _ in range(400)]
    counts = [sum(getattr(one, name) > 0 for name in DEFECTS) for one in drawn]
    assert 0.5 < counts.count(0) / 400 < 0.7
    assert set(counts) == {0, 1}
    severities = [getattr(one, name) for one in drawn for name in DEFECTS if getattr(one, name)]
    assert min(severities) >= 0.25
    assert max(severities) <= 1.0
    assert {name for one in drawn for name in DEFECTS if getattr(one, name)} == set(DEFECTS)
