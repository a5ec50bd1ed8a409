"""Reward aggregation weights: which scores of a clip count in its reward, and how much. Pure functions.

```
reward.weights | preset  ->  smoothness 1, motion 1, ...      one weight per AnimeReward dimension
reward.judges.vs.weight  ->  vs.visual, vs.dynamic, ...       one weight, shared by the judge's outputs
reward.feedback          ->  all of these | every score alike (global) | one of them
```

A judge with a single output has one score, named like the judge (``vs``); otherwise scores are named ``vs.OUTPUT``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common.config import RewardConfig, RewardJudgeConfig
from common.errors import ConfigError

ALL, GLOBAL = "all", "global"


def counted(config: RewardConfig, scored: Collection[str]) -> dict[str, float]:
    """The weight, above 0, of each name in `scored` that counts in the mean reward.

    Raises:
        ConfigError: a weight is set for a score that no reward model gives.
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


def expected(config: RewardConfig) -> list[str]:
    """The names of all scores, as far as they are known from the configuration alone."""
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
