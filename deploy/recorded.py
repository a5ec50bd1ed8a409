"""The roles of a run whose pairs people made: `config.pairs`. Serial mode; all but the training pairs is as ever."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from actors.prompts import PromptSource
from actors.recorded import RecordedPrompts, RecordedSampler
from common.config import ConfigError, RunConfig
from common.models import open_model
from common.recorded import RecordedPairs
from deploy.memory import needed_by
from deploy.roles import rewarder_of
from rewarders.base import Reward
from rewarders.recorded import OpinionRewarder

MAX_NAMED = 5  # clips left out that are named one by one


def open_roles(
    config: RunConfig, prompts: PromptSource, rewards: Sequence[Reward] | None
) -> tuple[RecordedPrompts, RecordedSampler, OpinionRewarder]:
    """Source, sampler and rewarder. Clips that do not fit the model are named on stderr, counted and left out.

    `ConfigError` when no pair is left, or where the configuration cannot have recorded pairs.
    """
    _check(config)
    pairs = RecordedPairs(Path(config.pairs), config.model, config.seed)
    for fault in list(pairs.faults.values())[:MAX_NAMED]:
        print(f"douga: {fault}; left out", file=sys.stderr)
    if len(pairs.faults) > MAX_NAMED:
        print(f"douga: {len(pairs.faults)} clips are left out in all", file=sys.stderr)
    with needed_by("sampler-0", config):
        sampler = RecordedSampler(open_model(config.model.path), config, pairs, "sampler-0")
    with needed_by("rewarder-0", config):
        rewarder = OpinionRewarder(rewarder_of(config, rewards)("rewarder-0"), pairs, config.reward)
    return RecordedPrompts(pairs, prompts, config.model), sampler, rewarder


def _check(config: RunConfig) -> None:
    what = f"pairs = {config.pairs!r}"
    if config.simulate:
        raise ConfigError(f"{what}: with simulate nothing is read; leave one of them out")
    if config.sampler.candidates != 2:
        raise ConfigError(f"{what}: a group is a pair; sampler.candidates = {config.sampler.candidates} must be 2")
    if Path(config.pairs).is_dir() and config.learner.loss != "sft":
        raise ConfigError(
            f"{what}: a folder of clips says nothing about which is better; only learner.loss = 'sft' learns from it "
            f"(douga finetune)"
        )
