"""From a clip's raw scores to its one reward: the only place where the two are put together. Pure.

    R~ = sum of w_d min(1, max(0, x_d / 100)) / sum of w_d            over the scores d that count

| symbol | here | range |
|---|---|---|
| x_d | raw score of a dimension or a judge's output | nominally 0 .. 100 |
| w_d | `reward_weights` | > 0 |
| R~ | `clip_reward` | [0, 1]; times 100 the mean reward that reports show |

```
reward.weights | preset  ->  smoothness 1, motion 1, ...      one weight per AnimeReward dimension
reward.judges.vs.weight  ->  vs.visual, vs.dynamic, ...       one weight, shared by the judge's outputs
reward.feedback          ->  all of these | every score alike (global) | one of them
```

A judge with one output is scored under its own name, ``vs``; one with several under ``vs.OUTPUT``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common.config import RewardConfig, RewardJudgeConfig
from common.errors import ConfigError

ALL, GLOBAL = "all", "global"
RANGE = 100.0  # raw scores are nominally 0 .. RANGE


def clip_reward(config: RewardConfig, scores: Mapping[str, float]) -> float:
    """R~ of one clip in [0, 1], from its raw scores. Raises `ConfigError` when a score that counts is missing."""
    clamped = {name: min(1.0, max(0.0, value / RANGE)) for name, value in scores.items()}
    return weighted_mean(clamped, reward_weights(config, scores))


def mean_score(config: RewardConfig, scores: Mapping[str, float]) -> float:
    """The mean of the raw scores that count, in points: R~ times 100 while all lie in 0 .. 100, never clamped."""
    return weighted_mean(scores, reward_weights(config, scores))


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The mean of `values` under `weights`, which name some of them."""
    return sum(weight * values[name] for name, weight in weights.items()) / sum(weights.values())


def reward_weights(config: RewardConfig, scored: Collection[str]) -> dict[str, float]:
    """Weight, above 0, of each of the names in `scored` that counts in the reward.

    Raises `ConfigError` when something that counts is scored by nothing.
    """
    if config.feedback == GLOBAL:
        return dict.fromkeys(scored, 1.0)
    if config.feedback != ALL:
        return _single(config, scored)
    weights = {name: weight for name, weight in config.head_weights.items() if weight > 0}
    for name, weight in sorted(weights.items()):
        if name not in scored:
            raise ConfigError(f"reward.weights.{name} = {weight}: no reward head scores {name}; {_listed(scored)}")
    for name, judge in config.judges.items():
        if judge.weight > 0:
            weights |= _shares(name, judge, scored)
    return weights


def expected_scores(config: RewardConfig) -> list[str]:
    """Names that are scored, as far as the configuration alone can tell."""
    names = [name for name, weight in config.head_weights.items() if weight > 0 or name == config.feedback]
    for name, judge in config.judges.items():
        names += [f"{name}.{output}" for output in judge.outputs] or [name]
    return names


def _single(config: RewardConfig, scored: Collection[str]) -> dict[str, float]:
    name = config.feedback
    if name in config.judges:
        return _shares(name, config.judges[name], scored)
    if name not in scored:
        raise ConfigError(f"reward.feedback = {name!r}: nothing scores it; {_listed(scored)}")
    return {name: 1.0}


def _shares(name: str, judge: RewardJudgeConfig, scored: Collection[str]) -> dict[str, float]:
    """A judge's weight, split among its outputs."""
    mine = [one for one in scored if one == name or one.startswith(f"{name}.")]
    parts: Mapping[str, float] = {f"{name}.{output}": part for output, part in judge.outputs.items()}
    missing = [one for one in parts if one not in mine]
    if missing or not mine:
        what = f"outputs.{missing[0].partition('.')[2]}" if missing else f"weight = {judge.weight:g}"
        raise ConfigError(f"reward.judges.{name}.{what}: the judge gives no such score; {_listed(scored)}")
    parts = parts or dict.fromkeys(mine, 1.0)
    weight = judge.weight or 1.0
    return {one: weight * part / sum(parts.values()) for one, part in parts.items() if part > 0}


def _listed(scored: Collection[str]) -> str:
    return f"available scores: {', '.join(sorted(scored)) or 'none'}"
