"""The report of `douga reward eval`: rewards beside pixel baselines, on clips that share nothing with training.

```
{"ratings": FILE, "clips": n, "left_out": {"seen in training": n, "not scored": n, ...},
 "dimensions": {"smoothness": {"clips": n, "prompts": n, "calibration": [...],
                               "judges": {"reward": {"SRCC": {"value", "low", "high"}, ...}, "optical flow": {...}}},
                ..., "overall": the mean of the dimensions}}
```

`rewarders/training/ranking_metrics.py` defines the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common.config import RewardConfig
from common.data.ratings import BadRow, dimensions
from common.errors import ConfigError
from common.messages import ScoreTask
from rewarders.first_frame import reference_frame
from rewarders.interface import Reward
from rewarders.rewarder import Rewarder
from rewarders.training import pixel_baselines
from rewarders.training.dataset import RatedDataset, unseen
from rewarders.training.ranking_metrics import RESAMPLES, ScoredClips, calibration, ranking_metrics

REWARD, OVERALL = "reward", "overall"
BATCH = 16  # clips per scoring batch
EVERY = 10.0  # seconds between progress lines


def report(
    rewards: Sequence[Reward],
    rated: RatedDataset,
    seen: Mapping[str, set[str]],
    log: Callable[[str], None],
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Returns how `rewards` agree with the ratings, in the format above.

    `seen` has, per dimension, the hashed leak keys of the training clips; clips that share one are left out. Raises
    `ConfigError` if no dimension has both ratings and a reward, or if no clip is left.
    """
    by_dimension = {reward.dimension: reward for reward in rewards}
    judged = _judged(by_dimension, rated)
    leak_keys, all_rows = rated.leak_keys(), np.arange(len(rated.rows))
    fresh = {name: np.isin(all_rows, unseen(leak_keys, seen.get(name, set()))) for name in judged}
    wanted = {name: fresh[name] & ~np.isnan(rated.scores(name)) for name in judged}
    rows = np.flatnonzero(np.any(list(wanted.values()), axis=0))
    if not len(rows):
        raise ConfigError(
            f"{rated.table.file}: every rated clip shares a first frame, prompt or character with training"
        )
    scores, plain = _measured([by_dimension[name] for name in judged], rated, rows, log)
    scored = {name: ~np.isnan(scores[name]) for name in judged}
    parts: dict[str, Part] = {name: (scores[name], rated.scores(name), wanted[name] & scored[name]) for name in judged}
    if len(judged) > 1:
        parts[OVERALL] = _overall(parts)
    lost = {name: int((wanted[name] & ~scored[name]).sum()) for name in judged}
    return {
        "ratings": str(rated.table.file),
        "clips": len(rows),
        "left_out": {
            "bad rows": len(rated.table.bad),
            "not rated": len(rated.table.rows) - len(rated.rows),
            "seen in training": {name: int((~fresh[name]).sum()) for name in judged},
            "not scored": lost,
        },
        "dimensions": {name: _section(name, *part, rated, plain, resamples, log) for name, part in parts.items()},
    }


def _judged(rewards: Mapping[str, Reward], rated: RatedDataset) -> list[str]:
    """Returns the dimensions that have both ratings and a reward. Raises `ConfigError` if there are none."""
    names = dimensions(rated.rows)
    judged = [name for name in names if name in rewards]
    if not judged:
        raise ConfigError(f"{rated.table.file}: rates {', '.join(names)}; rewards: {', '.join(rewards)}")
    return judged


Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # scores, opinions, and which clips have both: [n] each


def _overall(parts: Mapping[str, Part]) -> Part:
    """Returns the means over the dimensions, for the clips that have all of them."""
    scores, opinions, there = (np.array(column) for column in zip(*parts.values(), strict=True))
    return scores.mean(0), opinions.mean(0), np.all(there, axis=0)


def _section(
    name: str,
    scores: np.ndarray,
    opinions: np.ndarray,
    there: np.ndarray,
    rated: RatedDataset,
    plain: Mapping[str, np.ndarray],
    resamples: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    groups, candidates, wanted = rated.groups()[there], rated.candidates()[there], opinions[there]
    if not there.any():
        return {"clips": 0, "prompts": 0, "calibration": [], "judges": {}}
    log(f"{name}: {there.sum()} clips of {len(np.unique(groups))} prompts")
    favoured = {signal: pixel_baselines.with_positive_srcc(values[there], wanted) for signal, values in plain.items()}
    judges = {
        judge: ranking_metrics(ScoredClips(values, wanted, groups, candidates), resamples)
        for judge, values in ({REWARD: scores[there]} | favoured).items()
    }
    for signal in favoured:
        judges[signal].pop("ECE")  # a baseline has no scale to calibrate
    return {
        "clips": int(there.sum()),
        "prompts": len(np.unique(groups)),
        "calibration": [asdict(one) for one in calibration(scores[there], wanted)],
        "judges": {judge: {m: asdict(one) for m, one in found.items()} for judge, found in judges.items()},
    }


def _measured(
    rewards: Sequence[Reward], rated: RatedDataset, rows: np.ndarray, log: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns scores by dimension and baselines by name, ``[n]`` each; NaN where there is none."""
    rewarder = Rewarder(rewards, RewardConfig())
    scores = {reward.dimension: np.full(len(rated.rows), np.nan) for reward in rewards}
    plain = {name: np.full(len(rated.rows), np.nan) for name in pixel_baselines.SIGNALS}
    said, order = time.monotonic(), rated.by_first_frame(rows)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        prompts = {i: rated.prompt(i) for i in part}
        tasks = [ScoreTask(rated.rows[i].clip, prompts[i], rated.clip_bytes(i)) for i in part]
        for i, score in zip(part, rewarder.score(tasks), strict=True):
            for name, value in score.values.items():
                scores[name][i] = value
        for i, clip in rated.clips(part):
            if isinstance(clip, BadRow):
                log(f"left out: {clip}")
                continue
            for name, value in pixel_baselines.measure_signals(clip, reference_frame(clip, prompts[i])).items():
                plain[name][i] = value
        if time.monotonic() - said > EVERY:
            log(f"scored {start + len(part)}/{len(order)} clips")
            said = time.monotonic()
    return scores, plain
