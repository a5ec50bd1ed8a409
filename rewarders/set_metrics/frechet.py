"""Fréchet distance of two Gaussians (Dowson and Landau 1982), and the fit of one to rows that are read once.

```
d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))
tr((C1 C2)^(1/2)) = sum of the singular values of C1^(1/2) C2^(1/2)
```

The second line holds for covariances C, which are symmetric without negative eigenvalues: C1 C2 has the eigenvalues of
A A^T for A = C1^(1/2) C2^(1/2). It needs no square root of the product, which is not symmetric and, where a covariance
is singular, badly conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """Mean ``[D]`` and covariance ``[D, D]`` of `count` rows, float64. The covariance divides by `count`."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class GaussianFit:
    """Fits a Gaussian to rows ``[width]`` one at a time (Welford's algorithm)."""

    def __init__(self, width: int) -> None:
        self._mean, self._scatter, self._count = np.zeros(width), np.zeros((width, width)), 0

    def add(self, row: np.ndarray) -> None:
        """Takes one more row."""
        self._count += 1
        before = row - self._mean
        self._mean = self._mean + before / self._count
        self._scatter += np.outer(before, row - self._mean)

    def gaussian(self) -> Gaussian:
        """The Gaussian of all rows so far. Raises `ValueError` for fewer than two."""
        if self._count < 2:
            raise ValueError(f"a covariance needs at least 2 clips, not {self._count}")
        return Gaussian(self._mean, self._scatter / self._count, self._count)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """d^2, at least 0. Both must have the same number of features."""
    shared = np.linalg.svd(_square_root(one.covariance) @ _square_root(other.covariance), compute_uv=False).sum()
    spread = np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared
    return max(0.0, float(np.square(one.mean - other.mean).sum() + spread))  # rounding may leave it below 0


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
