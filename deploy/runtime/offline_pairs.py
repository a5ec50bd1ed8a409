"""The pairs of a run whose pairs people made (`config.pairs`), for whichever role asks for them. Imports no torch.

Every sampler and rewarder reads the file and the clips that it names, at one path on all nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from common.config import RunConfig, algorithm_class
from common.data.offline_pairs import RecordedPairs
from common.errors import ConfigError

MAX_NAMED = 5  # clips left out that are named one by one


def open_pairs(config: RunConfig) -> RecordedPairs:
    """`ConfigError` when no pair is left, or where the configuration cannot have recorded pairs."""
    _check(config)
    return RecordedPairs(Path(config.pairs), config.model, config.seed)


def name_faults(pairs: RecordedPairs, say: Callable[[str], None]) -> None:
    """Tell which clips do not fit the model."""
    for fault in list(pairs.faults.values())[:MAX_NAMED]:
        say(f"{fault}; left out")
    if len(pairs.faults) > MAX_NAMED:
        say(f"{len(pairs.faults)} clips are left out in all")


def on_stderr(line: str) -> None:
    """Where they are told, unless somebody else listens."""
    print(f"douga: {line}", file=sys.stderr)


def _check(config: RunConfig) -> None:
    what = f"pairs = {config.pairs!r}"
    if config.simulate:
        raise ConfigError(f"{what}: with simulate nothing is read; leave one of them out")
    folder = Path(config.pairs).is_dir()
    if folder and algorithm_class(config.algorithm.name).min_candidates > 1:
        raise ConfigError(
            f"{what}: a folder of clips says nothing about which is better; algorithm.name = 'sft' learns from it "
            f"(douga finetune)"
        )
    group = 1 if folder else 2
    if config.sampler.candidates != group:
        kind = "a clip" if folder else "a pair"
        raise ConfigError(
            f"{what}: a group is {kind}; sampler.candidates = {config.sampler.candidates} must be {group}"
        )
