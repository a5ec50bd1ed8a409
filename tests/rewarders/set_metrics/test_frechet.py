"""The Fréchet distance against closed forms and SciPy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from rewarders.set_metrics.frechet import Gaussian, GaussianFit, frechet_distance


def gaussian(mean: list[float] | np.ndarray, covariance: np.ndarray) -> Gaussian:
    return Gaussian(np.asarray(mean, float), covariance, 1000)


def random_covariance(seed: int, width: int, rank: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(rank, width))
    return rows.T @ rows / rank


def test_diagonal_covariances_by_hand() -> None:
    """(1-4)^2 + (2-2)^2 of the means, and (3-1)^2 + (5-6)^2 of the standard deviations."""
    one, other = gaussian([1, 2], np.diag([9.0, 25.0])), gaussian([4, 2], np.diag([1.0, 36.0]))
    assert frechet_distance(one, other) == pytest.approx(9 + 4 + 1)
    assert frechet_distance(other, one) == pytest.approx(14)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_a_scaled_covariance() -> None:
    """For C and s^2 C the distance is (1 - s)^2 tr C."""
    covariance = random_covariance(0, 6, 20)
    found = frechet_distance(gaussian(np.zeros(6), covariance), gaussian(np.zeros(6), 9 * covariance))
    assert found == pytest.approx(4 * np.trace(covariance))


def test_general_covariances_against_scipy() -> None:
    one, other = random_covariance(1, 12, 40), random_covariance(2, 12, 40)
    wanted = np.trace(one + other - 2 * np.real(sqrtm(one @ other)))
    found = frechet_distance(gaussian(np.zeros(12), one), gaussian(np.ones(12), other))
    assert found == pytest.approx(12 + wanted, rel=1e-8)


def test_singular_covariances() -> None:
    """Rank 1: (C1 C2)^(1/2) of a a^T and b b^T has the trace |a . b|."""
    a, b = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0, 1.0])
    found = frechet_distance(gaussian(np.zeros(3), np.outer(a, a)), gaussian(np.zeros(3), np.outer(b, b)))
    assert found == pytest.approx(9 + 5 - 2 * 4)
    few = random_covariance(3, 30, 5)
    assert frechet_distance(gaussian(np.zeros(30), few), gaussian(np.zeros(30), few)) == pytest.approx(0, abs=1e-6)


def test_the_fit_is_that_of_all_rows_at_once() -> None:
    rows = 100 + np.random.default_rng(4).normal(size=(50, 4)) @ np.diag([1, 2, 3, 4])
    fit = GaussianFit(4)
    for row in rows:
        fit.add(row)
    found = fit.gaussian()
    assert found.count == 50
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-9)


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_rows(count: int) -> None:
    fit = GaussianFit(3)
    for _ in range(count):
        fit.add(np.ones(3))
    with pytest.raises(ValueError, match=f"a covariance needs at least 2 clips, not {count}"):
        fit.gaussian()
