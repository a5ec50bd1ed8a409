"""Bootstrap intervals, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.bootstrap import bootstrap_mean, paired_bootstrap


def test_two_values_resample_to_their_three_means():
    # {0, 4} resampled twice gives 0, 2, 2 or 4, each a quarter: the 2.5 % and 97.5 % quantiles are 0 and 4.
    interval = bootstrap_mean([0.0, 4.0])
    assert (interval.mean, interval.low, interval.high) == (2.0, 0.0, 4.0)


def test_equal_values_have_no_width():
    interval = bootstrap_mean([3.0, 3.0, 3.0])
    assert (interval.mean, interval.low, interval.high) == (3.0, 3.0, 3.0)


def test_width_follows_the_standard_error():
    # 400 values alternating 0 and 2: standard error 1 / sqrt(400) = 0.05, so +- 1.96 * 0.05 = +- 0.098.
    interval = bootstrap_mean([0.0, 2.0] * 200)
    assert interval.mean == 1.0
    assert interval.low == pytest.approx(1 - 0.098, abs=0.006)
    assert interval.high == pytest.approx(1 + 0.098, abs=0.006)


def test_pairing_removes_what_prompts_have_in_common():
    before = np.arange(50.0)  # prompts differ widely, every one gains exactly 0.5
    interval = paired_bootstrap(before, before + 0.5)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_same_seed_same_interval_and_other_seed_another():
    values = np.linspace(0, 1, 20) ** 2
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_a_wider_level_gives_a_wider_interval():
    values = np.linspace(0, 1, 20) ** 2
    narrow, wide = bootstrap_mean(values, level=0.5), bootstrap_mean(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_invalid_values_are_refused(values):
    with pytest.raises(ValueError, match="at least 2 finite values"):
        bootstrap_mean(values)


def test_unpaired_lengths_are_refused():
    with pytest.raises(ValueError, match="2 and 3 values"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0])
