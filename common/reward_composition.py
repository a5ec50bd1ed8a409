"""The scalar reward of a clip, computed from its raw scores. Pure functions; no other module combines scores.

    R~ = sum of w_d min(1, max(0, x_d / 100)) / sum of w_d            over the dimensions d with a weight

| symbol | here | range |
|---|---|---|
| x_d | raw score of a reward dimension or of a judge's output | nominally 0 .. 100 |
| w_d | `reward_weights` | > 0 |
| R~ | `clip_reward` | [0, 1]; reports show 100 R~ |

```
reward.weights, preset   ->  smoothness 1, motion 1, ...      one weight per AnimeReward dimension
reward.judges.vs.weight  ->  vs.visual, vs.dynamic, ...       one weight, shared by the judge's outputs
no heads, no judges      ->  people                           the ratings of `pairs`, the whole reward
reward.feedback          ->  all of these | all scores with equal weight (global) | one of them
```

The score of a judge with one output has the judge's name, ``vs``; with several outputs they are named ``vs.OUTPUT``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common.config import RewardConfig, RewardJudgeConfig
from common.errors import ConfigError

ALL, GLOBAL = "all", "global"
PEOPLE = "people"  # the one score of a clip where people's ratings are the whole reward (`RewardConfig.empty`)
RANGE = 100.0  # raw scores are nominally 0 .. RANGE


def clip_reward(config: RewardConfig, scores: Mapping[str, float]) -> float:
    """R~ of one clip in [0, 1], from its raw scores. Raises `ConfigError` if a weighted score is missing."""
    clamped = {name: min(1.0, max(0.0, value / RANGE)) for name, value in scores.items()}
    return weighted_mean(clamped, reward_weights(config, scores))


def mean_score(config: RewardConfig, scores: Mapping[str, float]) -> float:
    """The weighted mean of the raw scores, without clamping; equals 100 R~ if all of them are in 0 .. 100."""
    return weighted_mean(scores, reward_weights(config, scores))


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The mean of `values` weighted by `weights`, whose keys are a subset of the keys of `values`."""
    return sum(weight * values[name] for name, weight in weights.items()) / sum(weights.values())


def reward_weights(config: RewardConfig, scored: Collection[str]) -> dict[str, float]:
    """The weight (> 0) of each name in `scored` that contributes to the reward.

    Raises `ConfigError` if a dimension or judge with a weight has no score in `scored`.
    """
    if config.empty:
        return {PEOPLE: 1.0}
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
    """Names of the scores that the configuration implies, before any clip is scored."""
    if config.empty:
        return [PEOPLE]
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
    """Split a judge's weight among its outputs."""
    found = [one for one in scored if one == name or one.startswith(f"{name}.")]
    parts: Mapping[str, float] = {f"{name}.{output}": part for output, part in judge.outputs.items()}
    missing = [one for one in parts if one not in found]
    if missing or not found:
        what = f"outputs.{missing[0].partition('.')[2]}" if missing else f"weight = {judge.weight:g}"
        raise ConfigError(f"reward.judges.{name}.{what}: the judge gives no such score; {_listed(scored)}")
    parts = parts or dict.fromkeys(found, 1.0)
    weight = judge.weight or 1.0
    return {one: weight * part / sum(parts.values()) for one, part in parts.items() if part > 0}


def _listed(scored: Collection[str]) -> str:
    return f"available scores: {', '.join(sorted(scored)) or 'none'}"
