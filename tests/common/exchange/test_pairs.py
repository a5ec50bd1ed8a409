"""Scores to pairs, with numbers worked out by hand."""

import pytest

from common.errors import ConfigError
from common.exchange import normaliser
from common.exchange.pairs import best_and_worst, gap_gain, make_pair, weighted_mean


def test_gap_gain_by_hand() -> None:
    assert gap_gain(2.0, 0.8, 0.3) == pytest.approx(0.509957, abs=1e-6)  # 1.741101 - 1.231144
    assert gap_gain(3.0, 1.0, 0.0) == pytest.approx(2.0)  # 3 - 1
    assert gap_gain(4.0, 0.5, 0.0) == pytest.approx(1.0)  # 2 - 1


def test_alpha_one_gives_no_gap_and_below_one_is_refused() -> None:
    assert gap_gain(1.0, 0.8, 0.3) == 0.0
    for alpha in (0.99, 0.0, float("nan")):
        with pytest.raises(ConfigError, match=r"learner\.alpha = .*at least 1"):
            gap_gain(alpha, 0.8, 0.3)


def test_weighted_mean() -> None:
    values = {"motion": 0.2, "appeal": 0.8, "text": 0.9}
    assert weighted_mean(values, {"motion": 1.0, "appeal": 1.0, "text": 0.0}) == pytest.approx(0.5)
    assert weighted_mean(values, {"motion": 3.0, "appeal": 1.0}) == pytest.approx(0.35)  # (0.6 + 0.8) / 4


def test_a_weighted_dimension_without_score_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"reward\.weights\.image = 2\.0: no reward head scores image; scored are text"
    ):
        weighted_mean({"text": 0.5}, {"text": 1.0, "image": 2.0})
    with pytest.raises(ConfigError, match="all are 0"):
        weighted_mean({"text": 0.5}, {"text": 0.0})


def test_best_and_worst_prefer_the_lowest_index() -> None:
    assert best_and_worst([0.4, 0.9, 0.1, 0.9, 0.1]) == (1, 2)
    assert best_and_worst([0.4, 0.4, 0.4]) is None


def test_pair_of_a_group() -> None:
    pair = make_pair(7, 3, ["a", "b", "c", "d"], [0.5, 0.3, 0.8, 0.6], alpha=2.0, min_gap=0.0)
    assert pair is not None
    assert (pair.ordinal, pair.policy_version, pair.winner, pair.loser) == (7, 3, "c", "b")
    assert (pair.winner_reward, pair.loser_reward) == (0.8, 0.3)
    assert pair.gap == gap_gain(2.0, 0.8, 0.3)


def test_ties() -> None:
    assert make_pair(0, 0, ["a", "b"], [0.5, 0.5], alpha=2.0, min_gap=0.0) is None
    assert make_pair(0, 0, ["a", "b"], [0.8, 0.3], alpha=2.0, min_gap=0.52) is None
    assert make_pair(0, 0, ["a", "b"], [0.8, 0.3], alpha=2.0, min_gap=0.50) is not None
    pair = make_pair(0, 0, ["a", "b"], [0.8, 0.3], alpha=1.0, min_gap=0.0)
    assert pair is not None
    assert pair.gap == 0.0


def test_fixed_range_clamps() -> None:
    got, state = normaliser.normalise("fixed", [{"motion": 73.1}, {"motion": -4.0}, {"motion": 120.0}], {})
    assert [one["motion"] for one in got] == [pytest.approx(0.731), 0.0, 1.0]
    assert state == {}


def test_running_rank_by_hand() -> None:
    first, state = normaliser.normalise("quantile", [{"m": 10.0}, {"m": 30.0}], {})
    assert [one["m"] for one in first] == [0.25, 0.75]  # half of itself: 0.5 / 2; 1.5 / 2
    second, after = normaliser.normalise("quantile", [{"m": 20.0}, {"m": 30.0}], state)
    assert [one["m"] for one in second] == [0.375, 0.75]  # of 10 20 30 30: 1.5 / 4; (2 + 1) / 4
    assert state == {"m": [10.0, 30.0]}
    assert after == {"m": [10.0, 30.0, 20.0, 30.0]}


def test_running_rank_forgets_the_oldest() -> None:
    state: normaliser.NormaliserState = {"m": [0.0] * normaliser.WINDOW}
    got, after = normaliser.normalise("quantile", [{"m": 1.0}], state)
    assert len(after["m"]) == normaliser.WINDOW
    assert got[0]["m"] == (2 * normaliser.WINDOW - 1) / (2 * normaliser.WINDOW)
