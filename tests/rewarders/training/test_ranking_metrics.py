"""Agreement with people, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rewarders.training.ranking_metrics import METRICS, ScoredClips, calibration, plcc, ranking_metrics, srcc


def judged(*clips: tuple[int, float, float, bool]) -> ScoredClips:
    """Clips as (prompt, score, opinion, made by a model)."""
    prompts, scores, opinions, candidates = zip(*clips, strict=True)
    return ScoredClips(np.array(scores), np.array(opinions), np.array(prompts), np.array(candidates))


SIX = judged(
    (0, 10.0, 0.0, True), (0, 30.0, 50.0, True), (0, 20.0, 100.0, True),
    (1, 40.0, 25.0, True), (1, 60.0, 75.0, True), (1, 90.0, 100.0, False),
)  # fmt: skip


def test_by_hand() -> None:
    found = ranking_metrics(SIX, resamples=200)
    values = {name: one.value for name, one in found.items()}
    assert list(values) == list(METRICS)
    assert values == {
        # ranks 1 3 2 4 5 6 and 1 3 5.5 2 4 5.5: 8.5 / sqrt(17.5 * 17)
        "SRCC": pytest.approx(0.49280, abs=1e-5),
        # 3416.667 / sqrt(4283.333 * 8333.333)
        "PLCC": pytest.approx(0.57188, abs=1e-5),
        # prompt 0: two of its three pairs are right; prompt 1: its one. The source video is in no pair.
        "pairwise": 0.75,
        # the best of prompt 0 comes second, that of prompt 1 first
        "MRR": 0.75,
        "Recall@1": 0.5,
        "Recall@2": 1.0,  # of prompt 0 alone: prompt 1 has no more than two candidates
        "Recall@4": None,
        # gaps 10, 20, 80, 15, 15, 10 in bins of their own
        "ECE": 25.0,
    }


def test_intervals_are_over_prompts() -> None:
    """Two prompts resample to one twice (2/3 or 1), or to both (3/4)."""
    found = ranking_metrics(SIX, resamples=400)
    assert (found["pairwise"].low, found["pairwise"].high) == (pytest.approx(2 / 3), 1.0)
    assert (found["MRR"].low, found["MRR"].high) == (0.5, 1.0)
    assert found["Recall@4"].low is None
    assert ranking_metrics(SIX, resamples=400) == found
    alone = ranking_metrics(judged((0, 1.0, 0.0, True), (0, 2.0, 50.0, True)))
    assert (alone["pairwise"].value, alone["pairwise"].low) == (1.0, None)


def test_the_interval_narrows_with_prompts() -> None:
    """100 prompts of one pair each, 80 of them right: standard error sqrt(0.8 * 0.2 / 100) = 0.04."""
    clips = [(p, s, o, True) for p in range(100) for s, o in ((50.0, 0.0), (60.0 if p % 5 else 40.0, 100.0))]
    found = ranking_metrics(judged(*clips), resamples=2000)["pairwise"]
    assert found.value == 0.8
    assert found.low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert found.high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)


def test_equal_scores_give_no_credit() -> None:
    found = ranking_metrics(judged((0, 5.0, 0.0, True), (0, 5.0, 100.0, True), (0, 5.0, 50.0, True)))
    assert (found["pairwise"].value, found["MRR"].value, found["Recall@1"].value) == (0.5, pytest.approx(1 / 3), 0.0)
    assert found["SRCC"].value is None


def test_equal_opinions_are_no_test() -> None:
    found = ranking_metrics(judged((0, 5.0, 50.0, True), (0, 9.0, 50.0, True)))
    assert [found[name].value for name in ("SRCC", "pairwise", "MRR", "Recall@1")] == [None] * 4
    two_best = ranking_metrics(judged((0, 5.0, 100.0, True), (0, 9.0, 100.0, True), (0, 7.0, 50.0, True)))
    assert two_best["MRR"].value == 1.0  # one of the best is first


def test_calibration() -> None:
    bins = calibration(np.array([0.0, 9.0, 95.0, 100.0]), np.array([10.0, 20.0, 90.0, 80.0]))
    assert [(one.low, one.high, one.clips, one.score, one.opinion) for one in bins] == [
        (0, 10, 2, 4.5, 15),
        (90, 100, 2, 97.5, 85),
    ]


def test_ranks() -> None:
    # ranks 1 2 3 4 against 1 2 4 3: 1 - 6 (0 + 0 + 1 + 1) / (4 * 15) = 0.8
    assert srcc(np.array([0.1, 0.2, 0.3, 0.9]), np.array([10, 20, 40, 30])) == pytest.approx(0.8)
    assert np.isnan(srcc(np.ones(4), np.arange(4)))
    assert plcc(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0])) == pytest.approx(1.0)


def test_non_finite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="scores and opinions must be finite"):
        judged((0, float("nan"), 1.0, True))
