"""Raw reward values to [0, 1], per dimension: by a fixed range, or by rank among the latest values.

Pure: the state goes in and comes out; the ledger keeps it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

FIXED_RANGE = 100.0  # AnimeReward: 0 .. 100
WINDOW = 1024  # values per dimension that the running rank remembers

NormaliserState = dict[str, list[float]]  # dimension -> latest raw values, oldest first


def normalise(
    kind: str, group: Sequence[Mapping[str, float]], state: Mapping[str, Sequence[float]]
) -> tuple[list[dict[str, float]], NormaliserState]:
    """The values of one group's candidates in [0, 1], and the state after them.

    `fixed`: x / 100, clamped. `quantile`: the share of the latest `WINDOW` values (this group's among them) that lie
    below x, ties counting half; the median is 0.5 whatever the scale of the reward model.
    """
    kept = {dimension: list(values) for dimension, values in state.items()}
    if kind == "fixed":
        return [{name: clamp(value / FIXED_RANGE) for name, value in values.items()} for values in group], kept
    for values in group:
        for name, value in values.items():
            kept[name] = [*kept.get(name, []), value][-WINDOW:]
    ranked = {name: sorted(values) for name, values in kept.items()}
    return [{name: rank(ranked[name], value) for name, value in values.items()} for values in group], kept


def clamp(value: float) -> float:
    """`value`, at least 0 and at most 1."""
    return min(1.0, max(0.0, value))


def rank(ordered: Sequence[float], value: float) -> float:
    """The share of `ordered` (ascending, not empty) below `value`, ties counting half."""
    return (bisect_left(ordered, value) + bisect_right(ordered, value)) / (2 * len(ordered))
