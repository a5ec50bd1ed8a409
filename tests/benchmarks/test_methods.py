"""The rows of the table of methods: each is a configuration, and each learns what it should.

Here the learner trains on a few fixed groups of the toon world, whose best and worst clips are known because they are
rendered. `tests/runs/test_methods.py` has whole online runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from actors.sampler import Sampler
from benchmarks.methods import chosen, methods
from common.config import RunConfig, load_config
from common.config.algorithm import open_algorithm
from common.errors import ConfigError
from common.messages import Conditioning, TrainingGroup
from common.models.cogvideox import open_model
from common.toon.prompts import ToonPrompts, prompt_of, shot_of
from common.toon.world import Defects, Shot, render, truth
from common.weights.tensors import from_array, to_array
from deploy.run_dir import layout
from learner.batch import Batch, collate
from learner.learner import Learner

STEPS, GROUPS = 3, 2
ROWS = {variant.label: variant for variant in methods(STEPS)}
WORST = Defects(swap=0.9, drift=0.8, wrong=0.9, freeze=0.5, flicker=0.6)
CANDIDATES = (Defects(jitter=0.3), Defects(), WORST, Defects(warp=0.5, flicker=0.3))  # of a group; the second is clean
CONTRARY = ((1.0, 0.2), (0.5, 0.52), (0.5, 0.52))  # rewards of a clean clip and of the worst one, by group
PROBES = range(100, 103)  # steps whose noise and timesteps are drawn to measure with; none of them is trained

pytestmark = pytest.mark.usefixtures("one_thread")


def configured(label: str, **more: Any) -> RunConfig:
    """The row's configuration, with a batch of the groups."""
    keys = {"learner.batch_size": GROUPS, "learner.steps_per_push": 100, "learner.checkpoint_every": 100} | more
    return load_config(layout.TOON, {**{key: str(value) for key, value in keys.items()}, **ROWS[label].flags})


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(open_model("toon"), configured("online-dpo"))


def shots(other: int = 0) -> list[Shot]:
    return [shot_of(ToonPrompts(7)(other + ordinal)) for ordinal in range(GROUPS)]


def groups_of(sampler: Sampler, config: RunConfig, candidates: Sequence[Defects] = CANDIDATES) -> list[TrainingGroup]:
    """One group per shot: its candidates, rewarded by the renderer's truth and selected by the algorithm."""
    rewards = [fmean(truth(defects).values()) / 100 for defects in candidates]
    found = []
    for ordinal, shot in enumerate(shots()):
        latents = [to_array(sampler.latents_of(render(shot, one, seed=ordinal))) for one in candidates]
        found.append(group(ordinal, config, rewards, sampler.encode(prompt_of(shot, ordinal)), latents))
    return found


def group(
    ordinal: int, config: RunConfig, rewards: Sequence[float], conditioning: Conditioning, latents: Sequence[Any]
) -> TrainingGroup:
    kept = open_algorithm(config.algorithm).select(rewards)
    assert kept is not None
    return TrainingGroup(
        ordinal=ordinal,
        policy_version=0,
        selection=kept,
        rewards=tuple(rewards[place] for place in kept.candidates),
        prompt=ToonPrompts(7)(ordinal),
        conditioning=conditioning,
        latents=tuple(latents[place] for place in kept.candidates),
        lag=0,
    )


class FixedGroups:
    """An exchange that leases the same groups at every step."""

    def __init__(self, groups: Sequence[TrainingGroup]) -> None:
        self.groups = groups

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        return self.groups

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        pass


def errors(learner: Learner, batch: Batch) -> torch.Tensor:
    """The policy's v errors [n, k] of the batch, averaged over the draws of `PROBES`."""
    with torch.no_grad():
        return torch.stack([learner.errors(batch, batch.ordinals, step)[0] for step in PROBES]).mean(0)


def learned(config: RunConfig, groups: Sequence[TrainingGroup], folder: Path) -> torch.Tensor:
    """How far training on the groups changes the policy's v errors on them, [n, k]; negative: the clip fits better."""
    learner, batch = Learner(open_model("toon"), config, folder), collate(groups)
    try:
        before, exchange = errors(learner, batch), FixedGroups(groups)
        for _ in range(STEPS):
            assert learner.work(exchange) is not None  # type: ignore[arg-type] - leases and commits alone
        return errors(learner, batch) - before
    finally:
        learner.close()


@pytest.mark.parametrize("label", ["offline-dpo", "offline-gapo"])
def test_the_chosen_clips_gain_on_the_rejected_ones(label: str, sampler: Sampler, tmp_path: Path) -> None:
    config = configured(label)
    change = learned(config, groups_of(sampler, config), tmp_path)
    assert change.shape == (GROUPS, 2)
    assert (change[:, 0] < change[:, 1]).all()


@pytest.mark.parametrize("label", ["offline-sft", "huvidpo-1"])
def test_fine_tuning_fits_the_best_clips_better(label: str, sampler: Sampler, tmp_path: Path) -> None:
    config = configured(label)
    change = learned(config, groups_of(sampler, config), tmp_path)
    assert change.shape == (GROUPS, 1)
    assert change.mean() < 0


def test_with_a_refreshed_reference_the_policy_goes_further(sampler: Sampler, tmp_path: Path) -> None:
    """OnlineVPO's K: against a frozen reference the gradient vanishes as soon as the pairs are learned."""
    gains = []
    for label in ("online-dpo", "onlinevpo"):
        config = configured(label, **{"learner.lr": 3e-4, "algorithm.beta": 50_000.0})
        change = learned(config, groups_of(sampler, config), tmp_path / label)
        gains.append((change[:, 1] - change[:, 0]).mean().item())
    assert gains[1] > 1.2 * gains[0] > 0


def test_gapo_follows_one_large_gap_and_dpo_the_majority(sampler: Sampler, tmp_path: Path) -> None:
    """Three groups have the same two clips. One prefers the clean clip by far, two the other one, barely."""
    gains, shot = [], shots()[0]
    latents = [to_array(sampler.latents_of(render(shot, one))) for one in (Defects(), WORST)]
    conditioning = sampler.encode(prompt_of(shot, 0))
    for label in ("offline-dpo", "offline-gapo"):
        config = configured(label, **{"algorithm.beta": 50.0, "learner.batch_size": len(CONTRARY)})
        groups = [group(place, config, rewards, conditioning, latents) for place, rewards in enumerate(CONTRARY)]
        clean, worst = learned(config, groups, tmp_path / label)[0].tolist()
        gains.append(worst - clean)
    dpo, gapo = gains
    assert dpo < 0 < gapo


def test_rated_clips_of_two_prompts_are_told_apart(sampler: Sampler, tmp_path: Path) -> None:
    """HuViDPO's stage 2: chosen and rejected have captions and first frames of their own."""
    config = configured("huvidpo-2")
    found = []
    for ordinal, (one, other) in enumerate(zip(shots(), shots(GROUPS), strict=True)):
        given = [sampler.encode(prompt_of(shot, ordinal)) for shot in (one, other)]
        texts = torch.stack([from_array(each.prompt_embeds) for each in given])
        images = torch.stack([from_array(each.image_latent) for each in given if each.image_latent is not None])
        latents = [to_array(sampler.latents_of(clip)) for clip in (render(one), render(other, WORST))]
        found.append(group(ordinal, config, (1.0, 0.25), Conditioning(to_array(texts), to_array(images)), latents))
    change = learned(config, found, tmp_path)
    assert (change[:, 0] < change[:, 1]).all()


def test_every_method_samples_equally_many_clips_or_says_what_it_takes_instead() -> None:
    """The budget is steps x batch x candidates; only offline data changes the candidates of a group.

    Methods that follow a reward's gradient compare none: they sample one, and denoise another in the learner.
    """
    budget = {
        "steps",
        "learner.batch_size",
        "sampler.candidates",
        "learner.steps_per_push",
        "exchange.max_times_trained",
    }
    changed = {label: budget & row.flags.keys() for label, row in ROWS.items() if budget & row.flags.keys()}
    assert changed == {label: {"sampler.candidates"} for label in ("refl", "instruct-video", "vader")}
    assert {ROWS[label].flags["sampler.candidates"] for label in changed} == {"1"}


def test_the_rows_are_the_papers_methods() -> None:
    found = {label: load_config(layout.TOON, dict(row.flags)).algorithm for label, row in ROWS.items()}
    assert {one.name for one in found.values()} == {
        "sft",
        "dpo",
        "gapo",
        "human_pairs",
        "refl",
        "instruct_video",
        "vader",
    }
    refreshed = [label for label, one in found.items() if getattr(one, "refresh_every", 0)]
    assert refreshed == ["onlinevpo"]
    assert not any(getattr(one, "normalise_gap", False) for one in found.values())


def test_only_chosen_rows() -> None:
    rows = tuple(ROWS.values())
    assert chosen(rows, "") == list(rows)
    assert [row.label for row in chosen(rows, "huvidpo-1,online-dpo")] == ["online-dpo", "huvidpo-1"]
    with pytest.raises(ConfigError, match="--only dpo: allowed are offline-sft, offline-dpo"):
        chosen(rows, "dpo")
