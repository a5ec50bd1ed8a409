"""The best split of N GPUs over the roles: learner ranks, rewarders and samplers, and the keys that go with them.

Every split is planned (`plan.draft`) and must fit into memory. The fastest ones by the bound of their slowest stage are
simulated (`forecast`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from common.config import RunConfig
from common.errors import ConfigError
from deploy.planning.forecast import GPUS_PER_NODE, Cluster, Forecast, forecast, pipeline_of
from deploy.planning.memory import Gpu
from deploy.planning.model_sizes import ModelSizes
from deploy.planning.plan import Plan, draft

SIMULATED = 12  # splits, the best by their bound
SHOWN = 3


@dataclass(frozen=True)
class Split:
    """One way to use the GPUs."""

    keys: Mapping[str, Any]  # configuration keys that differ from the given configuration
    forecast: Forecast


def best_splits(
    config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float, count: int, cluster: Cluster
) -> list[Split]:
    """The best splits of `count` GPUs, the fastest first. Equal rates: fewer changes of the configuration first.

    Raises:
        ConfigError: no split fits into the memory of the GPUs, or into their number.
    """
    plans = list(_plans(config, sizes, gpus, mfu, count, cluster))
    if not plans:
        raise ConfigError(
            f"--gpus {count}: no split of the roles fits: see the memory of each role with `douga plan` without --gpus"
        )
    plans.sort(key=lambda one: (-pipeline_of(one[1], cluster).bound, len(one[0])))
    found = [Split(keys, forecast(made, cluster)) for keys, made in plans[:SIMULATED]]
    return sorted(found, key=lambda one: (-round(one.forecast.pace.rate, 6), len(one.keys)))[:SHOWN]


def _plans(
    config: RunConfig, sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float, count: int, cluster: Cluster
) -> Iterator[tuple[dict[str, Any], Plan]]:
    """Of every number of ranks the split that fits with the fewest changed keys."""
    ranks = [n for n in range(1, min(GPUS_PER_NODE, count - 1) + 1) if config.learner.batch_size % n == 0]
    for n in ranks:
        for stage, reference in _placements(config):
            keys = {"cluster.learner.count": n, "learner.zero_stage": stage, "learner.reference": reference}
            made = _fitting(config, keys | {"cluster.sampler.count": count - n}, sizes, gpus, mfu)
            if made is None:
                continue
            rewarders = max(1, math.ceil((count - n) / made.pace.clip * cluster.score_seconds))
            samplers = count - n - math.ceil(rewarders * config.cluster.rewarder.gpus)
            keys |= {"cluster.rewarder.count": rewarders, "cluster.sampler.count": samplers}
            made = _fitting(config, keys, sizes, gpus, mfu) if samplers > 0 else None
            if made is not None:
                yield _different(config, keys), made
                break


def _placements(config: RunConfig) -> list[tuple[int, str]]:
    """ZeRO stages and places of the reference to try, those of the configuration first."""
    rules = config.learner
    if rules.train == "lora":
        return [(rules.zero_stage, rules.reference)]
    stages, places = dict.fromkeys((rules.zero_stage, 2, 3)), dict.fromkeys((rules.reference, "sharded", "host"))
    return sorted(product(stages, places), key=lambda one: (one[0] != rules.zero_stage) + (one[1] != rules.reference))


def _fitting(
    config: RunConfig, keys: Mapping[str, Any], sizes: ModelSizes, gpus: Mapping[str, Gpu], mfu: float
) -> Plan | None:
    changed = _changed(config, keys)
    made = None if changed is None else draft(changed, sizes, gpus, mfu)
    return None if made is None or any(need.total > need.budget for need in made.needs) else made


def _changed(config: RunConfig, keys: Mapping[str, Any]) -> RunConfig | None:
    """The configuration with other keys; None if they do not go together."""
    values = config.model_dump()
    for name, value in keys.items():
        *sections, key = name.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[key] = value
    try:
        return RunConfig.model_validate(values)
    except ValueError:
        return None


def _different(config: RunConfig, keys: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in keys.items():
        held: Any = config
        for part in name.split("."):
            held = getattr(held, part)
        if held != value:
            found[name] = value
    return found


def lines(splits: list[Split], count: int) -> list[str]:
    """The splits as lines of text, the best first."""
    shown = [f"the best splits of {count} GPUs"]
    for split in splits:
        one, pace = split.forecast, split.forecast.pace
        shown.append(
            f"  {3600 * pace.rate:8.1f}    steps an hour ({one.share:.0%} of the slowest stage; learner busy "
            f"{pace.busy['learner']:.0%}, samplers {pace.busy['sampler']:.0%})"
        )
        shown.append(f"              {' '.join(f'--{key} {value}' for key, value in split.keys.items()) or 'as it is'}")
    return shown
