"""Intervals of a mean, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.intervals import mean_interval, paired_interval


def test_two_values_have_three_subsets():
    # The subsets of {0, 4} that are not empty have the means 0, 4 and 2: the 2.5 % and 97.5 % quantiles are 0 and 4.
    interval = mean_interval([0.0, 4.0])
    assert (interval.mean, interval.low, interval.high) == (2.0, 0.0, 4.0)


def test_equal_values_have_no_width():
    interval = mean_interval([3.0, 3.0, 3.0])
    assert (interval.mean, interval.low, interval.high) == (3.0, 3.0, 3.0)


def test_width_follows_the_standard_error():
    # 400 values alternating 0 and 2: standard error 1 / sqrt(400) = 0.05, so +- 1.96 * 0.05 = +- 0.098.
    interval = mean_interval([0.0, 2.0] * 200)
    assert interval.mean == 1.0
    assert interval.low == pytest.approx(1 - 0.098, abs=0.006)
    assert interval.high == pytest.approx(1 + 0.098, abs=0.006)


@pytest.mark.parametrize(("changed", "sure"), [(5, False), (6, True)])
def test_few_values_other_than_zero_are_sure_only_where_chance_would_hardly_give_them_one_sign(changed, sure):
    # k of n values are 1, the others 0: a subset has the mean 0 with probability 2^-k, 3.1 % for 5 and 1.6 % for 6.
    # A bootstrap of 20 has it with probability (1 - k / 20)^20, 1.2 % for 4, though 4 signs agree in 1 of 8 cases.
    interval = mean_interval([1.0] * changed + [0.0] * (20 - changed))
    assert (interval.low > 0) is sure


def test_pairing_removes_what_prompts_have_in_common():
    before = np.arange(50.0)  # prompts differ widely, every one gains exactly 0.5
    interval = paired_interval(before, before + 0.5)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_same_seed_same_interval_and_other_seed_another():
    values = np.linspace(0, 1, 20) ** 2
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_a_wider_level_gives_a_wider_interval():
    values = np.linspace(0, 1, 20) ** 2
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_invalid_values_are_refused(values):
    with pytest.raises(ValueError, match="at least 2 finite values"):
        mean_interval(values)


def test_unpaired_lengths_are_refused():
    with pytest.raises(ValueError, match="2 and 3 values"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
