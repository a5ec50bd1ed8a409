"""Bootstrap confidence intervals of a mean, plain and paired by prompt. Deterministic: resampling has a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
LEAST_VALUES = 10  # below, the interval is too narrow to rest a verdict on: it misses a true mean over 5 % of the time
_BLOCK = 1000  # resamples drawn at a time: bounds the memory to _BLOCK x n indices


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its percentile bootstrap interval; low <= mean <= high up to resampling noise."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Mean of n >= 2 values and its percentile bootstrap interval at confidence `level`.

    If all values are equal, the interval has zero width.

    Raises:
        ValueError: fewer than 2 values, or a NaN or infinite one.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or len(data) < 2 or not np.isfinite(data).all():
        raise ValueError(f"a bootstrap needs at least 2 finite values in one dimension, got {list(data.shape)}")
    rng = np.random.default_rng(seed)
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    means = np.concatenate([data[rng.integers(0, len(data), (size, len(data)))].mean(1) for size in blocks])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean and interval of the change ``after - before``. Both hold one value per prompt, in the same order.

    Prompts are resampled rather than values, so variance that both measurements of a prompt share cancels out.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"before and after must have the same length: {len(first)} and {len(second)} values")
    return bootstrap_mean(second - first, resamples, level, seed)
