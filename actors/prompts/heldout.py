"""The held-out prompts of a run: those of the comparison, and the guardrails' probes.

A prompt is its caption and its first frame: clips of one prompt are not independent of each other, however many rows or
seeds they come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.data.prompt_keys import prompt_key
from common.errors import ConfigError
from common.intervals import LEAST_VALUES
from common.messages import Prompt

OTHER_SEED = 1  # added to the run's seed for the order in which probes are drawn


class HeldOutPrompts(NamedTuple):
    """Both with ordinals from 0."""

    comparison: list[Prompt]  # `evaluation.prompts` of them; repeated in turn if there are fewer distinct ones
    probes: list[Prompt]  # distinct; at most `guardrails.prompts`


def heldout_prompts(source: PromptSource, config: RunConfig) -> HeldOutPrompts:
    """Draws the probes, then the comparison's prompts from the others.

    The comparison gets the probes' prompts as well if it would otherwise have fewer than `LEAST_VALUES` distinct ones.
    Raises `ConfigError` if the source has fewer than two.
    """
    count, seed = config.evaluation.prompts, config.seed
    if not count + config.guardrails.prompts:
        return HeldOutPrompts([], [])
    probes = _distinct(source.heldout(config.guardrails.prompts, seed + OTHER_SEED))
    pool = _pool(source, count + len(probes), seed)
    if count and len(pool) < 2:
        raise ConfigError(
            f"prompts = {config.prompts!r}: 1 distinct held-out prompt (caption and first frame); the comparison needs "
            "2 or more"
        )
    others = [prompt for key, prompt in pool.items() if key not in probes]
    used = others if len(others) >= min(count, LEAST_VALUES) else list(pool.values())
    comparison = [replace(used[place % len(used)], ordinal=place) for place in range(count)]
    return HeldOutPrompts(comparison, [replace(one, ordinal=place) for place, one in enumerate(probes.values())])


def _pool(source: PromptSource, most: int, seed: int) -> dict[str, Prompt]:
    """Up to `most` distinct held-out prompts by key. A source repeats itself, so it is asked until it has no others."""
    draws, pool = most, _distinct(source.heldout(most, seed))
    while len(pool) < most:
        before, draws = len(pool), 2 * draws
        pool = _distinct(source.heldout(draws, seed))
        if len(pool) == before:
            break
    return dict(islice(pool.items(), most))


def _distinct(prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(prompt_key(prompt), prompt)
    return found
