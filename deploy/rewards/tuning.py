"""Trains heads of `rewarders.anime_reward` (``douga reward train``), on frozen encoders or together with them.

```
OUT/DIMENSION.{json,safetensors}, OUT/DIMENSION-ROLE/     fine-tuned: the head and its encoders
OUT/frozen/                                               the heads that the fine-tuning started from
OUT/training/DIMENSION/                                   its state
```
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.data.ratings import dimensions
from common.errors import ConfigError
from rewarders.head_files import load_heads, save_heads, save_tuned
from rewarders.interface import Reward
from rewarders.training import train
from rewarders.training.dataset import RatedDataset
from rewarders.training.encoders import EncoderTraining, fine_tune

FROZEN = "frozen"

Options = argparse.Namespace


def train_class(rated: RatedDataset, options: Options, plan: train.HeadTraining, out: Path) -> Any:
    """Trains the head of the class ``--head`` on frozen encoders. Raises `ConfigError` for bad options."""
    from rewarders.anime_reward import CLASSES  # noqa: PLC0415 - importing transformers takes seconds

    kind = CLASSES.get(options.head)
    if kind is None:
        raise ConfigError(f"--head {options.head}: allowed are toon, {', '.join(CLASSES)}")
    if kind.dimension not in dimensions(rated.rows):
        raise ConfigError(f"{options.ratings}: has no ratings of {kind.dimension}, which {options.head} scores")
    models = dict(_named("model", word) for word in options.model)
    how = {name: _value(text) for name, text in (_named("option", word) for word in options.option)}
    reward: Any = kind.create(models, options.device, plan.seed, how)
    made_of = {"head": options.head, "models": models, "options": reward.options, "method": dict(reward.METHOD)}
    return train.train_reward(rated, reward, made_of, out, plan, print)


def tune(options: Options, rated: RatedDataset, plan: EncoderTraining) -> None:
    """Fine-tunes encoders with the heads of ``--start``, or with a new head, which is trained first."""
    frozen = options.out / FROZEN
    if options.start:
        starts, trained = _starts(options, dimensions(rated.rows)), Path(options.start)
    elif options.head == "toon":
        raise ConfigError("--encoders: toon heads have none; name a class with --head, or trained heads with --start")
    else:
        print(f"{options.head}: the head first, on frozen encoders")
        starts, trained = [train_class(rated, options, train.HeadTraining(seed=plan.seed), frozen)], frozen
    for reward in starts:
        save_heads([reward], frozen)
        print(f"{reward.dimension}: encoders and head together")
        fine_tune(rated, reward, options.out, plan, print, train.seen_in_training(trained, reward.dimension))
        _print_sizes(save_tuned(reward, options.out))


def _starts(options: Options, rated: Sequence[str]) -> list[Any]:
    """Returns the heads of ``--start`` that are fine-tuned: those of ``--dimensions``, else all that are rated."""
    if options.head != "toon" or options.model or options.option:
        raise ConfigError(
            "--start: the heads have their class, models and options; leave out --head, --model, --option"
        )
    if Path(options.start).resolve() == options.out.resolve():
        raise ConfigError(f"--start {options.start}: must not be the folder of --out")
    heads: dict[str, Any] = {head.dimension: head for head in load_heads(options.start, options.device)}
    able = [name for name, head in heads.items() if hasattr(head, "encoders") and name in rated]
    names = [name.strip() for name in (options.dimensions or "").split(",") if name.strip()] or able
    unfit = [name for name in names if name not in able]
    if unfit or not names:
        what = f"--dimensions {unfit[0]}" if unfit else f"--start {options.start}"
        raise ConfigError(f"{what}: rated, and with encoders in {options.start}: {', '.join(able) or 'none'}")
    return [heads[name] for name in names]


def _print_sizes(reward: Any) -> None:
    for role, size in reward.description(Path())["encoders"].items():
        millions, mebibytes = size["parameters"] / 1e6, size["bytes"] / 2**20
        print(f"{reward.folders[role]}: {millions:.1f} M parameters, {mebibytes:.1f} MiB")


def frozen_heads(heads: Sequence[Any], folder: Path | None, device: str, log: Callable[[str], None]) -> list[Reward]:
    """Returns the heads that the fine-tuned ones of `heads` started from; those that cannot be loaded are logged."""
    tuned = [head.dimension for head in heads if getattr(head, "tuned", ())]
    if folder is None or not tuned:
        return []
    try:
        return [head for head in load_heads(str(folder / FROZEN), device) if head.dimension in tuned]
    except ConfigError as error:
        log(f"not compared with frozen encoders: {error}")
        return []


def _named(option: str, word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--{option} {word}: NAME=VALUE is expected")
    return name, value


def _value(text: str) -> Any:
    """Parses a JSON value, such as a number or a boolean; other text is returned unchanged."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
