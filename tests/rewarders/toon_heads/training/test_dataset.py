"""The heads' data: split by character, rated by the renderer, a function of the seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from common.toon.world import AS_DRAWN, CHARACTERS, DIMENSIONS, Defects, Shot, caption, render
from rewarders.toon_heads.training import dataset
from rewarders.toon_heads.training.dataset import (
    TEST_CHARACTERS,
    TRAIN_CHARACTERS,
    Samples,
    draw_samples,
    mirror_captions,
)
from rewarders.toon_heads.training.degradation import FIGURE_DIMENSIONS


@pytest.fixture(scope="module")
def train() -> Samples:
    return draw_samples(60, 5, degraded=0.0)


def parts_of(shots: Iterable[Shot]) -> set[str]:
    return {part for shot in shots for part in shot.character.split("+")}


def test_the_split_is_by_character(train: Samples) -> None:
    assert sorted(TRAIN_CHARACTERS + TEST_CHARACTERS) == sorted(CHARACTERS)
    assert parts_of(train.shots) == set(TRAIN_CHARACTERS)
    assert len({shot.look for shot in train.shots}) > 25
    test = draw_samples(20, 5, "test", degraded=0.0)
    assert {(shot.character, shot.look) for shot in test.shots} == {(name, AS_DRAWN) for name in TEST_CHARACTERS}
    rng = np.random.default_rng(0)
    for shot in train.shots:
        stand_in = dataset._stand_in(shot, rng, "train")
        assert parts_of([stand_in]) <= set(TRAIN_CHARACTERS)
        assert (stand_in.character, stand_in.look) != (shot.character, shot.look)
    assert {dataset._stand_in(test.shots[0], rng, "test").character for _ in range(40)} == set(CHARACTERS) - {
        test.shots[0].character
    }


def test_candidates_show_one_shot_with_separate_defects() -> None:
    samples = draw_samples(6, 3, TEST_CHARACTERS[1], degraded=0.0, candidates=3)
    assert {shot.character for shot in samples.shots} == {TEST_CHARACTERS[1]}
    assert samples.shots[0] == samples.shots[1] == samples.shots[2] != samples.shots[3] == samples.shots[5]
    assert len({tuple(row) for row in samples.truths.tolist()}) > 4


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
    monkeypatch.setattr(dataset, "_draw_defects", lambda rng: known)
    samples = draw_samples(8, 0, degraded=0.0)
    # smoothness 100 (1 - max(0.25, 0.5)), appeal 100 (1 - 0.75), character 100 (1 - 0.5)
    assert samples.truths.tolist() == [[50, 100, 25, 100, 100, 50]] * 8


def test_badness_by_frame() -> None:
    swapped = np.arange(9) == 3
    bad = dataset._badness(Defects(flicker=0.5, jitter=0.25, freeze=0.125, wrong=0.4, drift=1.0, swap=0.125), swapped)
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
    clip, swapped = dataset._render(shot, Defects(swap=0.5), other, np.random.default_rng(2))
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


def test_redrawn_clips_are_rated_by_what_they_were() -> None:
    """A figure that vanishes is lost, and unsteady; one that stays is not. It does what it was drawn under."""
    given: list[bytes] = []
    drawn_under: list[str] = []

    def vanish(clips: np.ndarray, captions: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        assert len(clips) == len(captions)
        given.extend(clip[0].tobytes() for clip in clips)
        drawn_under.extend(captions)
        gone = clips.copy()
        gone[:, 5:] = gone[:, :1, :, :1]  # the left edge's colours, as far as they are the sky's
        return gone

    samples = draw_samples(80, 3, regenerate=vanish, degraded=0.0)
    redrawn = np.array([i for i, first in enumerate(samples.firsts) if first.tobytes() in given])
    assert len(redrawn) == len(given)
    assert 16 <= len(redrawn) <= 38  # a third of 80
    assert {samples.shots[i].phase for i in redrawn} == {0}
    known = [samples.shots[i].look == AS_DRAWN and "+" not in samples.shots[i].character for i in redrawn]
    assert 0.25 < np.mean(known) < 0.8
    for dimension in FIGURE_DIMENSIONS:
        bad = samples.badness_of(dimension)[redrawn]
        assert bad[:, :4].max() < 0.1  # H.264 alone
        assert bad[:, 4:].min() > 0.6
        assert samples.truth_of(dimension)[redrawn] == pytest.approx(100 * (1 - bad.mean(1)))
    assert (samples.truth_of("smoothness")[redrawn] < samples.truth_of("appeal")[redrawn]).all()
    heard = np.array([caption(samples.shots[i]) == text for i, text in zip(redrawn, drawn_under, strict=True)])
    assert 0 < (~heard).sum() < 0.6 * len(heard)
    assert (samples.truth_of("text")[redrawn] == np.where(heard, 100, 0)).all()
    assert (samples.badness_of("text")[redrawn] == np.where(heard, 0, 1)[:, None]).all()
    assert np.setdiff1d(np.arange(80), samples.rated("motion")).tolist() == redrawn[~heard].tolist()


def test_mirrored_captions() -> None:
    assert mirror_captions(["a robot walks left at night", "a robot jumps"]) == [
        "a robot walks right at night",
        "a robot jumps",
    ]
