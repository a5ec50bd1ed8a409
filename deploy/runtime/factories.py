"""Who does the work of a role: a model, people's recorded pairs, or with `simulate` something that only takes its time.

Every function imports at once what its role needs, and nothing else: a process imports while others get ready, and a
simulated one is small and starts fast. What it returns opens models and makes the worker.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actors.prompts.source import PromptSource, open_prompts
from common.config import RunConfig
from deploy.observability.scalars import check_sinks
from deploy.runtime.offline_pairs import name_faults, on_stderr, open_pairs
from deploy.runtime.oom import needed_by

if TYPE_CHECKING:
    from actors.loop import SamplingLoop
    from learner.loop import LearningLoop
    from rewarders.interface import Judge, Reward
    from rewarders.loop import ScoringLoop


def open_inputs(config: RunConfig, say: Callable[[str], None] = on_stderr) -> PromptSource:
    """The run's prompts; they, the model folder and recorded pairs are looked at before a run folder is made.

    Recorded clips that do not fit the model are left out, and named by `say`. `ConfigError` for what is missing or
    broken.
    """
    check_sinks(config)
    pairs = open_pairs(config) if config.pairs else None
    needs_image = True
    if not config.simulate:
        from common.models.cogvideox import open_model

        needs_image = open_model(config.model.path).image_conditioned
    prompts = open_prompts(config.prompts, config.seed, needs_image)
    prompts.heldout(config.evaluation.prompts, config.seed)
    if pairs is None:
        return prompts
    from actors.offline import RecordedPrompts

    name_faults(pairs, say)
    return RecordedPrompts(pairs, prompts, config.model)


def sampler_of(config: RunConfig) -> Callable[[str], SamplingLoop]:
    """Makes the sampler of a name, which starts under version 0."""
    if config.simulate:
        from actors.simulated import SimulatedSampler

        return partial(SimulatedSampler, config)
    from common.models.cogvideox import open_model

    if config.pairs:
        from actors.offline import RecordedSampler

        return lambda worker: RecordedSampler(open_model(config.model.path), config, open_pairs(config), worker)
    from actors.sampler import Sampler

    return lambda worker: Sampler(open_model(config.model.path), config, worker)


def rewarder_of(config: RunConfig, rewards: Sequence[Reward | Judge] | None = None) -> Callable[[str], ScoringLoop]:
    """Makes the rewarder of a name. `rewards` takes the place of heads and judges.

    It raises `ConfigError` when something that counts is scored by none of them.
    """
    if config.simulate:
        from rewarders.simulated import SimulatedRewarder

        return partial(SimulatedRewarder, config)
    from rewarders.judges import open_rewards
    from rewarders.offline import OfflineRewarder
    from rewarders.rewarder import rewarder_for

    def make(worker: str) -> ScoringLoop:
        scorers = open_rewards(config.reward, config.model.device) if rewards is None else rewards
        usual = rewarder_for(scorers, config.reward, worker)
        return OfflineRewarder(usual, open_pairs(config), config.reward) if config.pairs else usual

    return make


def open_scorers(
    config: RunConfig, rewards: Sequence[Reward | Judge] | None = None
) -> tuple[SamplingLoop, ScoringLoop]:
    """Opens one sampler and one rewarder in this process. Raises `ConfigError` for what is missing or broken."""
    with needed_by("sampler-0", config):
        sampler = sampler_of(config)("sampler-0")
    with needed_by("rewarder-0", config):
        return sampler, rewarder_of(config, rewards)("rewarder-0")


def learner_of(config: RunConfig) -> Callable[[Path, str], LearningLoop]:
    """Makes the learner of a run folder and a name, at step 0: `resume` comes next."""
    if config.simulate:
        from learner.simulated import SimulatedLearner

        return partial(SimulatedLearner, config)
    from common.models.cogvideox import open_model
    from learner.learner import Learner

    return lambda folder, worker: Learner(open_model(config.model.path), config, folder, worker)
