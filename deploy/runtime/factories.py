"""Factories for samplers, rewarders and learners: real models, offline human pairs, or simulated work.

Each function imports what its role needs when it is called, and nothing else, so that a process imports while others
start up, and simulated processes stay small and start fast. The callable that it returns opens models and creates the
worker.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actors.prompts.heldout import HeldOutPrompts, heldout_prompts
from actors.prompts.source import PromptSource, open_prompts
from common.config import RunConfig, algorithm_class
from common.data.prompt_keys import prompt_key
from common.errors import ConfigError
from common.intervals import LEAST_VALUES
from deploy.observability.scalars import check_sinks
from deploy.runtime.inputs.offline_pairs import name_faults, on_stderr, open_pairs
from deploy.runtime.oom import needed_by

if TYPE_CHECKING:
    from actors.loop import SamplingLoop
    from learner.loop import LearningLoop
    from rewarders.interface import Judge, Reward
    from rewarders.loop import ScoringLoop


def open_inputs(config: RunConfig, notify: Callable[[str], None] = on_stderr) -> PromptSource:
    """Opens the run's prompts, and checks the model folder and the offline pairs. Call before creating a run folder.

    `notify` is told of offline clips that do not fit the model and are left out, of captions that are not read whole,
    and of repeated prompts. Raises `ConfigError` for missing or invalid input.
    """
    check_sinks(config)
    if algorithm_class(config.algorithm.name).needs_rollouts:
        from rewarders.gradient.reward import check_gradients

        check_gradients(config.reward)
    pairs = open_pairs(config) if config.pairs else None
    prompts = open_training_prompts(config)
    if not config.simulate:
        from deploy.runtime.inputs.captions import report_run

        report_run(config, prompts, pairs, notify)
        _check_work(config, prompts)
    if not config.collect.prompts:
        prompts(0)  # raises if every prompt is held out
        heldout = heldout_prompts(prompts, config)  # raises if there are not enough
        _tell_few(config, heldout, notify)
    if config.candidates:
        from actors.stored import StoredPrompts
        from common.candidate_set.groups import open_groups

        groups = open_groups(config, notify)
        groups.check_apart([*heldout.comparison, *heldout.probes])
        return StoredPrompts(groups, prompts)
    if pairs is None:
        return prompts
    from actors.offline import OfflinePrompts

    name_faults(pairs, notify)
    return OfflinePrompts(pairs, prompts, config.model)


def _tell_few(config: RunConfig, heldout: HeldOutPrompts, notify: Callable[[str], None]) -> None:
    """Says so if the run will end without a verdict."""
    distinct = len({prompt_key(prompt) for prompt in heldout.comparison})
    if 0 < distinct < LEAST_VALUES and not (config.simulate or config.reward.empty):
        more = "hold out more rows (column split)" if distinct < len(heldout.comparison) else "raise evaluation.prompts"
        notify(
            f"prompts = {config.prompts!r}: {distinct} distinct held-out prompts are compared; a verdict needs "
            f"{LEAST_VALUES}: {more}"
        )


def _check_work(config: RunConfig, prompts: PromptSource) -> None:
    """Checks what workers, the learner or the collection would find later. Raises `ConfigError`, `NotFoundError`."""
    from common.models.cogvideox import open_model

    model = open_model(config.model.path)
    model.latent_shape(config.model.frames, config.model.height, config.model.width)
    if config.collect.prompts:
        from deploy.runtime.collection import collected_prompts, source_weights

        collected_prompts(config, prompts)
        source_weights(config)
        return
    from learner.checks import check_learner

    check_learner(model, config)


def check_toon_heads(config: RunConfig) -> None:
    """Raises `ConfigError` if the embedded heads are to score clips of another size. Loads none of them."""
    from common.toon.world import FRAMES, HEIGHT, WIDTH

    size = (config.model.frames, config.model.height, config.model.width)
    if config.reward.path == "toon" and config.samples and not config.simulate and size != (FRAMES, HEIGHT, WIDTH):
        raise ConfigError(
            f"reward.path = 'toon': these heads score clips of {FRAMES}x{HEIGHT}x{WIDTH}; the model makes "
            f'{"x".join(map(str, size))}: name a folder of heads, or set reward.path to "" and add a judge '
            "(docs/rewards.md)"
        )


def open_training_prompts(config: RunConfig) -> PromptSource:
    """Opens `config.prompts` for the model of the run. Raises `ConfigError` for missing or invalid input."""
    needs_image = True
    if not config.simulate:
        from common.models.cogvideox import open_model

        needs_image = open_model(config.model.path).image_conditioned
    return open_prompts(config.prompts, config.seed, needs_image, (config.model.height, config.model.width), on_stderr)


def sampler_of(config: RunConfig) -> Callable[[str], SamplingLoop]:
    """Returns a function: worker name -> sampler, which starts with weight version 0."""
    if config.simulate:
        from actors.simulated import SimulatedSampler

        return partial(SimulatedSampler, config)
    from common.models.cogvideox import open_model

    if config.pairs:
        from actors.offline import OfflineSampler

        return lambda worker: OfflineSampler(open_model(config.model.path), config, open_pairs(config), worker)
    from actors.sampler import Sampler

    if config.candidates:
        from actors.stored import StoredSampler
        from common.candidate_set.groups import open_groups

        def stored(worker: str) -> SamplingLoop:
            online = Sampler(open_model(config.model.path), config, worker) if config.samples else None
            return StoredSampler(online, open_groups(config), config, worker)

        return stored
    return lambda worker: Sampler(open_model(config.model.path), config, worker)


def rewarder_of(config: RunConfig, rewards: Sequence[Reward | Judge] | None = None) -> Callable[[str], ScoringLoop]:
    """Returns a function: worker name -> rewarder. `rewards` replaces the heads and judges of the configuration.

    The function raises `ConfigError` if no reward scores a dimension that has a weight.
    """
    if config.simulate:
        from rewarders.simulated import SimulatedRewarder

        return partial(SimulatedRewarder, config)
    from rewarders.judges import open_rewards
    from rewarders.judging.rehearsal import rehearse
    from rewarders.offline import WithoutReward, rewarder_of_groups, rewarder_of_pairs
    from rewarders.rewarder import rewarder_for

    def of_rewards(worker: str) -> ScoringLoop:
        scorers = open_rewards(config.reward, config.model.device) if rewards is None else rewards
        found = rewarder_for(scorers, config.reward, worker)
        rehearse(found, config.model)
        return found

    def of_groups(online: ScoringLoop | None, worker: str) -> ScoringLoop:
        from common.candidate_set.groups import open_groups

        return rewarder_of_groups(online, open_groups(config), config.reward, worker)

    def make(worker: str) -> ScoringLoop:
        if not config.samples:
            return of_groups(None, worker)
        usual = WithoutReward(worker, config.reward.batch) if config.reward.empty else of_rewards(worker)
        if config.candidates:
            return of_groups(usual, worker)
        return rewarder_of_pairs(usual, open_pairs(config), config.reward) if config.pairs else usual

    return make


def open_scorers(
    config: RunConfig, rewards: Sequence[Reward | Judge] | None = None
) -> tuple[SamplingLoop, ScoringLoop]:
    """Opens one sampler and one rewarder in this process. Raises `ConfigError` for missing or invalid input."""
    with needed_by("sampler-0", config):
        sampler = sampler_of(config)("sampler-0")
    with needed_by("rewarder-0", config):
        return sampler, rewarder_of(config, rewards)("rewarder-0")


def learner_of(config: RunConfig) -> Callable[[Path, str], LearningLoop]:
    """Returns a function: (run folder, worker name) -> learner at step 0; call `resume` next."""
    if config.simulate:
        from learner.simulated import SimulatedLearner

        return partial(SimulatedLearner, config)
    from common.models.cogvideox import open_model
    from learner.learner import Learner

    def learner(folder: Path, worker: str) -> LearningLoop:
        rewards = None
        if algorithm_class(config.algorithm.name).needs_rollouts:
            from rewarders.gradient.reward import open_gradients

            rewards = open_gradients(config.reward, config.model.device)
        return Learner(open_model(config.model.path), config, folder, worker, rewards)

    return learner
