"""How well scores agree with people: what `douga reward eval` reports of a judge.

| symbol | meaning |
|---|---|
| s_i | score of clip i; a head's is 0..100 |
| y_i | mean opinion of clip i, as a score 0..100 |
| C_p | candidates: the rated clips of prompt p that a model made, N of them; source videos are none |
| B_p | those of C_p with the highest y |
| r_p | rank of the best candidate: 1 + the others of C_p whose s is not below the highest s of B_p |

```
SRCC, PLCC   Spearman's and Pearson's correlation of s and y, over all clips
pairwise   = share of pairs of one prompt's candidates with y_i > y_j for which s_i > s_j; s_i = s_j counts half
MRR        = mean over prompts of 1 / r_p
Recall@k   = share of the prompts with N > k for which r_p <= k
ECE        = sum over bins b of n_b / n |mean s - mean y|, in ten bins of s of equal width: expected calibration error
```

MRR and Recall@1, 2, 4 among N candidates are how OnlineVPO compares reward models (its Tab. 2). Prompts whose
candidates are all rated alike have no best one and count in neither. Equal scores never help a judge: r_p is the worst
rank that a tie allows. Intervals are 95 % percentile bootstraps over prompts, since clips of one prompt are no
independent draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RECALLS = (1, 2, 4)
BINS = 10
RESAMPLES = 1000
LEVEL = 0.95
METRICS = ("SRCC", "PLCC", "pairwise", "MRR", *(f"Recall@{k}" for k in RECALLS), "ECE")


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where the clips do not define it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Bin:
    """The clips whose scores lie in [`low`, `high`): how many, their mean score and mean opinion, 0..100."""

    low: float
    high: float
    clips: int
    score: float
    opinion: float


@dataclass(frozen=True)
class Judged:
    """Clips with scores and opinions."""

    scores: np.ndarray  # float [n]
    opinions: np.ndarray  # float [n], 0 .. 100
    prompts: np.ndarray  # int [n]: clips with equal numbers were made for the same prompt
    candidates: np.ndarray  # bool [n]: a model made it

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.scores, self.opinions, self.prompts, self.candidates)}
        if len(shapes) > 1 or not (np.isfinite(self.scores).all() and np.isfinite(self.opinions).all()):
            raise ValueError(f"finite scores and opinions of as many clips are needed, got shapes {sorted(shapes)}")


def agreement(judged: Judged, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """All of `METRICS`. With fewer than two prompts, or where a figure is undefined, there is no interval."""
    order = _Prompts(judged)
    values = order.measure(np.arange(len(order)))
    if len(order) < 2:
        return {name: Estimate(_known(value), None, None) for name, value in zip(METRICS, values, strict=True)}

    def statistic(chosen: np.ndarray, axis: int) -> np.ndarray:
        return np.moveaxis(np.apply_along_axis(order.measure, axis, chosen), axis, 0)

    with warnings.catch_warnings():  # a figure that is undefined in some resample has no interval of scipy's
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            (np.arange(len(order)),), statistic, n_resamples=resamples, method="percentile", vectorized=True,
            rng=np.random.default_rng(seed), batch=100,
        ).bootstrap_distribution  # fmt: skip
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return {
        name: Estimate(_known(value), *((None, None) if np.isnan(value) else (_known(low[i]), _known(high[i]))))
        for i, (name, value) in enumerate(zip(METRICS, values, strict=True))
    }


def calibration(scores: np.ndarray, opinions: np.ndarray) -> list[Bin]:
    """What people say where the judge says so much; empty bins are left out."""
    place = _bin(scores)
    width = 100 / BINS
    return [
        Bin(i * width, (i + 1) * width, int(there.sum()), float(scores[there].mean()), float(opinions[there].mean()))
        for i in range(BINS)
        if (there := place == i).any()
    ]


def srcc(scores: np.ndarray, opinions: np.ndarray) -> float:
    """Spearman's rank correlation of two ``[n]`` arrays, ties sharing their mean rank; NaN where one is constant."""
    return plcc(stats.rankdata(scores), stats.rankdata(opinions))


def plcc(scores: np.ndarray, opinions: np.ndarray) -> float:
    """Pearson's linear correlation of two ``[n]`` arrays; NaN where one of them is constant."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(opinions) == 0:
        return float("nan")
    return float(np.corrcoef(scores, opinions)[0, 1])  # scipy's computes a p-value with it, at ten times the time


class _Prompts:
    """The clips by prompt, and what is counted once per prompt."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged
        self._rows = [np.flatnonzero(judged.prompts == one) for one in np.unique(judged.prompts)]
        groups = [rows[judged.candidates[rows]] for rows in self._rows]
        counted = [_ranked(judged.scores[rows], judged.opinions[rows]) for rows in groups]
        self._right, self._pairs, self._rank = (np.array(column) for column in zip(*counted, strict=True))
        self._size = np.array([len(rows) for rows in groups])

    def __len__(self) -> int:
        return len(self._rows)

    def measure(self, chosen: np.ndarray) -> np.ndarray:
        """`METRICS` over some prompts, any of them several times; NaN where undefined."""
        rows = np.concatenate([self._rows[i] for i in chosen])
        scores, opinions = self._judged.scores[rows], self._judged.opinions[rows]
        rank, size = self._rank[chosen], self._size[chosen]
        return np.array(
            [
                srcc(scores, opinions),
                plcc(scores, opinions),
                _share(self._right[chosen].sum(), self._pairs[chosen].sum()),
                _mean(1 / rank[~np.isnan(rank)]),
                *(_mean(rank[~np.isnan(rank) & (size > k)] <= k) for k in RECALLS),
                _ece(scores, opinions),
            ]
        )


def _ranked(scores: np.ndarray, opinions: np.ndarray) -> tuple[float, int, float]:
    """One prompt's candidates: pairs that are right, pairs, and r_p (NaN where none is best)."""
    better = opinions[:, None] > opinions
    ahead = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    right, pairs = float(ahead[better].sum()), int(better.sum())
    if not pairs:
        return right, pairs, float("nan")
    best = opinions == opinions.max()
    return right, pairs, 1.0 + (scores[~best] >= scores[best].max()).sum()


def _ece(scores: np.ndarray, opinions: np.ndarray) -> float:
    gaps = np.bincount(_bin(scores), scores - opinions, BINS)  # the sum of a bin: n_b times the means' difference
    return float(np.abs(gaps).sum() / len(scores))


def _bin(scores: np.ndarray) -> np.ndarray:
    return np.clip(scores * BINS / 100, 0, BINS - 1).astype(int)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(values: np.ndarray | Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
