"""Offline human pairs of a run (`config.pairs`), for all roles. Imports no torch.

Every sampler and rewarder reads the file and the clips that it names, so all nodes need them at the same path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from common.config import RunConfig, algorithm_class
from common.data.offline_pairs import OfflinePairs
from common.errors import ConfigError, one_per_line

MAX_NAMED = 5  # excluded clips, and rows, that are reported individually


def open_pairs(config: RunConfig) -> OfflinePairs:
    """Opens the pairs. Raises `ConfigError` if none is usable, or the configuration does not allow offline pairs."""
    _check(config)
    return OfflinePairs(Path(config.pairs), config.model, config.seed, config.pairs_category)


def name_faults(pairs: OfflinePairs, notify: Callable[[str], None]) -> None:
    """Reports bad rows, stray captions, clips that do not fit the model, and how much is left, through `notify`."""
    for line in pairs.strays:
        notify(line)
    if pairs.bad_rows:
        rows = f"{pairs.place}: bad rows left out ({len(pairs.bad_rows)})"
        notify(one_per_line(rows, pairs.bad_rows, MAX_NAMED))
    for fault in list(pairs.faults.values())[:MAX_NAMED]:
        notify(f"{fault}; left out")
    if len(pairs.faults) > MAX_NAMED:
        notify(f"{len(pairs.faults)} clips are left out in all")
    notify(pairs.summary())


def on_stderr(line: str) -> None:
    """Prints a line to stderr."""
    print(f"douga: {line}", file=sys.stderr)


def _check(config: RunConfig) -> None:
    what = f"pairs = {config.pairs!r}"
    if config.simulate:
        raise ConfigError(f"{what}: a simulated run reads no pairs; remove one of the two keys")
    folder = Path(config.pairs).is_dir()
    if folder and algorithm_class(config.algorithm.name).min_candidates > 1:
        raise ConfigError(f"{what}: a folder of clips has no preferences; use algorithm.name = 'sft' (douga finetune)")
    group = 1 if folder else 2
    if config.sampler.candidates != group:
        kind = "a clip" if folder else "a pair"
        raise ConfigError(
            f"{what}: a group is {kind}; sampler.candidates = {config.sampler.candidates} must be {group}"
        )
