"""The heads' data: split by character, rated by the renderer, a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest

from common.toon.world import CHARACTERS, DIMENSIONS, Defects, Shot, caption, render
from rewarders.training import data
from rewarders.training.data import TEST_CHARACTERS, TRAIN_CHARACTERS, Samples, draw_samples, mirrored


@pytest.fixture(scope="module")
def train() -> Samples:
    return draw_samples(60, 5, degraded=0.0)


def test_the_split_is_by_character(train: Samples) -> None:
    assert sorted(TRAIN_CHARACTERS + TEST_CHARACTERS) == sorted(CHARACTERS)
    assert {shot.character for shot in train.shots} == set(TRAIN_CHARACTERS)
    assert len({shot.palette for shot in train.shots}) > 3
    test = draw_samples(20, 5, "test", degraded=0.0)
    assert {(shot.character, shot.palette) for shot in test.shots} == {(name, 0) for name in TEST_CHARACTERS}
    rng = np.random.default_rng(0)
    stand_ins = [data._stand_in(shot, rng, "train") for shot in train.shots for _ in range(5)]
    assert {shot.character for shot in stand_ins} == set(TRAIN_CHARACTERS)


def test_clips_start_clean_and_are_rated(train: Samples) -> None:
    for shot, first, clip in zip(train.shots, train.firsts, train.clips, strict=True):
        assert (first == render(shot)[0]).all()
        assert (clip[0] == first).all()
    assert train.captions[3] == caption(train.shots[3])
    assert train.truths.shape == (60, 6)
    for name in DIMENSIONS:
        clean = (train.truth_of(name) == 100).mean()
        assert 0.15 < clean < 0.8  # smoothness has two defects of 0.45: 0.3 are clean, the others 0.55
        assert train.truth_of(name).min() < 40


def test_labels_of_known_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Defects(flicker=0.25, jitter=0.5, warp=0.75, swap=0.5)
    monkeypatch.setattr(data, "_draw_defects", lambda rng: known)
    samples = draw_samples(8, 0, degraded=0.0)
    # smoothness 100 (1 - max(0.25, 0.5)), appeal 100 (1 - 0.75), character 100 (1 - 0.5)
    assert samples.truths.tolist() == [[50, 100, 25, 100, 100, 50]] * 8


def test_badness_by_frame() -> None:
    swapped = np.arange(9) == 3
    bad = data._badness(Defects(flicker=0.5, jitter=0.25, freeze=0.125, wrong=0.4, drift=1.0, swap=0.125), swapped)
    assert bad.tolist() == [
        [0.5] * 8,
        [0.125] * 8,
        [0.0] * 8,
        [0, 0, 0, 0, 0, 1, 1, 1],  # round(0.4 * 8) = 3 frames
        [1.0] * 8,
        [0, 0, 1, 0, 0, 0, 0, 0],  # frame 3 is the third after frame 0
    ]


def test_badness_is_the_truth_by_frame(train: Samples) -> None:
    assert train.badness.shape == (60, 6, 8)
    assert np.abs(1 - train.badness.mean(2) - train.truths / 100).max() <= 0.5 / 8 + 1e-6


def test_a_swap_shows_the_stand_in_for_its_share_of_frames() -> None:
    shot, other = Shot("robot", "snow", "walk_right", 3), Shot("zombie", "snow", "walk_right", 3)
    clip, swapped = data._render(shot, Defects(swap=0.5), other, np.random.default_rng(2))
    own, their = render(shot), render(other)
    shown = [(clip[t] == their[t]).all() for t in range(9)]
    assert [(clip[t] == own[t]).all() for t in range(9)] == [not there for there in shown]
    assert shown == swapped.tolist()
    assert sum(shown) == 4  # round(0.5 * 8)
    assert not shown[0]
    assert "".join("x" if there else "." for there in shown).strip(".") == "xxxx"


def test_a_function_of_the_seed(train: Samples) -> None:
    again = draw_samples(60, 5, degraded=0.0)
    assert (again.clips == train.clips).all()
    assert again.shots == train.shots
    assert (draw_samples(4, 6).clips == draw_samples(4, 6).clips).all()
    assert draw_samples(4, 7, degraded=0.0).shots != draw_samples(4, 6, degraded=0.0).shots


def test_degraded_clips_are_near_what_they_were() -> None:
    clean, lossy = draw_samples(6, 1, degraded=0.0), draw_samples(6, 1, degraded=1.0)
    assert (lossy.firsts == clean.firsts).all()
    for before, after in zip(clean.clips, lossy.clips, strict=True):
        error = np.abs(before.astype(int) - after).mean()
        assert 0.2 < error < 12
    inverted = draw_samples(6, 1, degrade=lambda clips: 255 - clips, degraded=1.0)
    assert np.abs(inverted.clips.astype(int) - (255 - clean.clips.astype(int))).mean() < 3  # only H.264 is between


def test_mirrored_captions() -> None:
    assert mirrored(["a robot walks left at night", "a robot jumps"]) == [
        "a robot walks right at night",
        "a robot jumps",
    ]
