"""From the scores of one group to its preference pair: the only place where pairs are made. Pure.

The pair is OnlineVPO's (best and worst of N samples of the policy itself); its weight is GAPO's gap, from "Aligning
Anime Video Generation with Human Feedback" (arXiv:2504.10044), section "Gap-Aware Preference Optimization":

    gap = alpha^R~w - alpha^R~l            L_GAPO = gap * L_DPO

| symbol    | here                             | range        |
|-----------|----------------------------------|--------------|
| R~w, R~l  | `winner_reward`, `loser_reward`  | [0, 1]       |
| alpha     | `alpha`, `learner.alpha`         | >= 1         |
| gap       | `PreferencePair.gap`             | [0, alpha-1] |
| R~        | `weighted_mean`                  | [0, 1]       |

R~ is the paper's R / 100, R the mean of the six AnimeReward dimensions, when weights are equal and the range is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.errors import ConfigError
from common.messages import PreferencePair


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """R~ of one candidate in [0, 1]. Every dimension of positive weight must be there, or it is a `ConfigError`."""
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise ConfigError("reward.weights: all are 0; at least one dimension must count")
    missing = sorted(used.keys() - values.keys())
    if missing:
        raise ConfigError(
            f"reward.weights.{missing[0]} = {used[missing[0]]}: no reward head scores {missing[0]}; "
            f"scored are {', '.join(sorted(values)) or 'none'}"
        )
    return sum(weight * values[name] for name, weight in used.items()) / sum(used.values())


def best_and_worst(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Indices of the highest and the lowest reward, the lowest index first among equals; None when all are equal."""
    if max(rewards) == min(rewards):
        return None
    return rewards.index(max(rewards)), rewards.index(min(rewards))


def gap_gain(alpha: float, winner_reward: float, loser_reward: float) -> float:
    """alpha^R~w - alpha^R~l, >= 0. alpha = 1 gives 0; alpha < 1 would prefer the loser and is refused."""
    if not alpha >= 1.0:
        raise ConfigError(f"learner.alpha = {alpha}: must be at least 1; below 1 the gap would prefer the loser")
    return alpha**winner_reward - alpha**loser_reward


def make_pair(
    ordinal: int, version: int, candidates: Sequence[str], rewards: Sequence[float], *, alpha: float, min_gap: float
) -> PreferencePair | None:
    """The pair of a group (candidate ids and their R~, in index order), or None for a tie.

    A tie is a group whose rewards are all equal, or whose gap is below `min_gap`.
    """
    ends = best_and_worst(rewards)
    if ends is None:
        return None
    best, worst = ends
    gap = gap_gain(alpha, rewards[best], rewards[worst])
    if gap < min_gap:
        return None
    return PreferencePair(ordinal, candidates[best], candidates[worst], rewards[best], rewards[worst], gap, version)
