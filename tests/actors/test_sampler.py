"""The sampler: candidates from (weights, seed) alone, weights swapped between groups, one lease at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from actors.sampler import Sampler
from common.config import RunConfig, load_config
from common.data.video import decode_clip
from common.errors import ConfigError
from common.exchange.api import FailureKind, SamplerExchange, Submitted
from common.messages import Candidate, Conditioning, Prompt, SamplingLease, WeightVersion
from common.models.cogvideox import ModelFolder, open_model
from common.models.lora import adapter_state, inject_lora
from common.toon.prompts import ToonPrompts
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from common.weights.tensors import from_array
from tests.support.tiny import CHANNELS, TEXT_LENGTH, TEXT_TO_VIDEO, TEXT_WIDTH, tiny_pipeline

SEEDS = (101, 102, 103, 104)
SHAPE = (3, CHANNELS, 12, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(tiny_pipeline(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return ToonPrompts(0)(7)


def config(**flags: Any) -> RunConfig:
    defaults = {"sampler.steps": 2, "sampler.micro_batch": 2, "sampler.guidance": 1.0}
    return load_config(flags=defaults | {name.replace("__", "."): value for name, value in flags.items()})


def latents_of(candidates: list[Candidate]) -> torch.Tensor:
    return torch.stack([from_array(candidate.latents) for candidate in candidates])


def test_a_group_has_ids_latents_and_clips(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config())
    group = sampler.sample(prompt, sampler.encode(prompt), SEEDS, range(4))
    assert [candidate.id for candidate in group] == ["7-0-v0", "7-1-v0", "7-2-v0", "7-3-v0"]
    assert [candidate.seed for candidate in group] == list(SEEDS)
    for candidate in group:
        assert (candidate.latents.dtype, candidate.latents.shape) == ("float32", SHAPE)
        assert (candidate.fps, candidate.height, candidate.width) == (8, 48, 64)
        assert decode_clip(candidate.clip).shape == (9, 48, 64, 3)
    spread = latents_of(group)
    assert all((spread[i] - spread[j]).abs().max() > 0.1 for i in range(4) for j in range(i))


def test_a_clip_shows_its_latents(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config())
    candidate = sampler.sample(prompt, sampler.encode(prompt), SEEDS, [1])[0]
    vae = model.load_vae("float32", "cpu")
    latents = from_array(candidate.latents).transpose(0, 1)[None] / 0.7
    frames = vae.decode(latents).sample[0].permute(1, 2, 3, 0)  # type: ignore[union-attr]
    expected = ((frames.clamp(-1, 1) + 1) * 127.5).numpy()
    assert np.abs(decode_clip(candidate.clip) - expected).mean() < 3


def test_micro_batches_change_nothing(model: ModelFolder, prompt: Prompt) -> None:
    groups = []
    for size in (1, 2, 3, 4):
        sampler = Sampler(model, config(sampler__micro_batch=size))
        groups.append(latents_of(sampler.sample(prompt, sampler.encode(prompt), SEEDS, range(4))))
    for group in groups[1:]:
        torch.testing.assert_close(group, groups[0], atol=1e-5, rtol=0)


def test_a_candidate_sampled_alone_is_bit_identical_to_the_group(model: ModelFolder, prompt: Prompt) -> None:
    first, second = Sampler(model, config()), Sampler(model, config(), "sampler-1")
    group = first.sample(prompt, first.encode(prompt), SEEDS, range(4))
    for index in range(4):
        assert second.sample(prompt, second.encode(prompt), SEEDS, [index]) == [group[index]]
    with pytest.raises(ValueError, match="a group of 4"):
        first.sample(prompt, first.encode(prompt), SEEDS, [4])


def test_global_random_state_does_not_matter(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config())
    conditioning = sampler.encode(prompt)
    torch.manual_seed(1)
    first = sampler.sample(prompt, conditioning, SEEDS, [0])
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert sampler.sample(prompt, conditioning, SEEDS, [0]) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_conditioning_is_encoded_once(model: ModelFolder, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(model, config())
    calls: list[str] = []
    encode = sampler._encode
    monkeypatch.setattr(sampler, "_encode", lambda prompt: (calls.append(prompt.id), encode(prompt))[1])
    one = sampler.encode(prompt)
    assert sampler.encode(replace(prompt, ordinal=99)) is one
    assert calls == [prompt.id]
    assert one.prompt_embeds.shape == (TEXT_LENGTH, TEXT_WIDTH)
    assert one.image_latent is not None
    assert one.image_latent.shape == (1, *SHAPE[1:])
    assert sampler.encode(replace(prompt, text="a zombie")).prompt_embeds != one.prompt_embeds


def test_the_empty_caption(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config())
    empty = sampler.empty_prompt_embeds()
    assert empty.shape == (TEXT_LENGTH, TEXT_WIDTH)
    assert empty == sampler.encode(replace(prompt, text="")).prompt_embeds
    guided = Sampler(model, config(sampler__guidance=6.0))
    conditioning = sampler.encode(prompt)
    assert guided.sample(prompt, conditioning, SEEDS, [0]) != sampler.sample(prompt, conditioning, SEEDS, [0])


def test_text_to_video_needs_no_image(tmp_path: Path, prompt: Prompt) -> None:
    model = open_model(tiny_pipeline(tmp_path, **TEXT_TO_VIDEO))
    sampler = Sampler(model, config())
    bare = replace(prompt, image=None)
    conditioning = sampler.encode(bare)
    assert conditioning.image_latent is None
    assert sampler.sample(bare, conditioning, SEEDS, [0])[0].latents.shape == SHAPE


def test_bfloat16_latents_stay_bfloat16(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config(model__dtype="bfloat16"))
    candidate = sampler.sample(prompt, sampler.encode(prompt), SEEDS, [0])[0]
    assert candidate.latents.dtype == "bfloat16"
    assert decode_clip(candidate.clip).shape == (9, 48, 64, 3)


# Weights.


def shifted(model: ModelFolder) -> dict[str, torch.Tensor]:
    state = model.load_transformer("float32", "cpu").state_dict()
    return {name: tensor + 0.05 if name.startswith("proj_out") else tensor for name, tensor in state.items()}


def publish(
    folder: Path, state: dict[str, torch.Tensor], version: int, kind: str = "full", base: int | None = None
) -> WeightVersion:
    base = version if base is None else base
    return WeightStore(folder).publish(TensorStream.of(state), version=version, step=1, pushes=1, kind=kind, base=base)


def test_a_swap_changes_output_version_and_digest(model: ModelFolder, prompt: Prompt, tmp_path: Path) -> None:
    sampler = Sampler(model, config())
    conditioning = sampler.encode(prompt)
    before, digest = sampler.sample(prompt, conditioning, SEEDS, [0])[0], sampler.policy_digest()
    sampler.load(publish(tmp_path, shifted(model), 3), shifted(model))
    after = sampler.sample(prompt, conditioning, SEEDS, [0])[0]
    assert (after.id, after.policy_version, sampler.version) == ("7-0-v3", 3, 3)
    assert after.latents != before.latents
    assert after.clip != before.clip
    assert sampler.policy_digest() != digest
    base = model.load_transformer("float32", "cpu").state_dict()
    sampler.load(publish(tmp_path, base, 4), base)
    assert sampler.sample(prompt, conditioning, SEEDS, [0])[0].latents == before.latents
    assert sampler.policy_digest() == digest


def test_an_adapter_over_its_base(model: ModelFolder, prompt: Prompt, tmp_path: Path) -> None:
    settings = config()
    learner = model.load_transformer("float32", "cpu")
    inject_lora(learner, settings.learner.lora, seed=0, name="policy")
    fresh = adapter_state(learner, "policy")
    trained = {name: tensor + 0.1 for name, tensor in fresh.items()}
    sampler = Sampler(model, settings)
    conditioning = sampler.encode(prompt)

    def latents() -> torch.Tensor:
        return latents_of(sampler.sample(prompt, conditioning, SEEDS, [0]))

    base = latents()
    sampler.load(publish(tmp_path, fresh, 1, "adapter", 0), fresh)
    torch.testing.assert_close(latents(), base)
    sampler.load(publish(tmp_path, trained, 2, "adapter", 0), trained)
    assert (latents() - base).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="an adapter over version 2, but sampler-0 holds version 0"):
        sampler.load(publish(tmp_path, trained, 3, "adapter", 2), trained)
    full = model.load_transformer("float32", "cpu").state_dict()
    sampler.load(publish(tmp_path, full, 4), full)
    assert torch.equal(latents(), base)


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_weights_of_another_base_of_equal_shape_are_refused(kind: str, model: ModelFolder, tmp_path: Path) -> None:
    """The same base model in another folder is accepted."""
    other = open_model(tiny_pipeline(tmp_path / "other", seed=1))
    same = open_model(shutil.copytree(model.path, tmp_path / "same"))
    learner = model.load_transformer("float32", "cpu")
    if kind == "adapter":
        inject_lora(learner, config().learner.lora, seed=0, name="policy")
    state = adapter_state(learner, "policy") if kind == "adapter" else learner.state_dict()
    place = {"version": 1, "step": 1, "pushes": 1, "kind": kind, "base": 0 if kind == "adapter" else 1}
    version = WeightStore(tmp_path).publish(TensorStream.of(state), model=model.parts, **place)
    refusing, taking = Sampler(other, config()), Sampler(same, config())
    digest = refusing.policy_digest()
    with pytest.raises(ConfigError, match=r"weight version 1: made on another base .* differ in transformer"):
        refusing.load(version, state)
    assert (refusing.version, refusing.policy_digest()) == (0, digest)
    taking.load(version, state)
    assert taking.policy_digest() == version.digest


def test_foreign_or_altered_weights_are_refused_and_nothing_changes(model: ModelFolder, tmp_path: Path) -> None:
    sampler = Sampler(model, config())
    digest, state = sampler.policy_digest(), shifted(model)
    version = publish(tmp_path, state, 1)
    name = "proj_out.weight"
    with pytest.raises(ConfigError, match=f"{name} is missing; another architecture"):
        sampler.load(version, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ConfigError, match=rf"{name} is torch.float32\[2, 2\], the model has torch.float32\[16, 32\]"):
        sampler.load(version, state | {name: torch.zeros(2, 2)})
    with pytest.raises(ConfigError, match=f"{name} is torch.bfloat16"):
        sampler.load(version, state | {name: state[name].bfloat16()})
    with pytest.raises(ConfigError, match="not the ones in its manifest"):
        sampler.load(version, state | {"extra": torch.zeros(1)})
    assert (sampler.policy_digest(), sampler.version) == (digest, 0)


# The loop.


class Desk:
    """An exchange that hands out the given leases and writes down what it gets."""

    def __init__(self, *leases: SamplingLease, answers: Iterator[Submitted] | None = None) -> None:
        self.leases, self.answers = list(leases), answers
        self.conditionings: list[Conditioning] = []
        self.candidates: list[Candidate] = []
        self.failures: list[str] = []
        self.renewals = 0

    def lease_sampling(self, worker: str, version: int) -> SamplingLease | None:
        return self.leases.pop(0) if self.leases else None

    def submit_conditioning(self, lease: SamplingLease, conditioning: Conditioning) -> Submitted:
        self.conditionings.append(conditioning)
        return Submitted(True)

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> Submitted:
        self.candidates.append(candidate)
        return Submitted(True) if self.answers is None else next(self.answers)

    def fail_sampling(self, lease: SamplingLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        self.failures.append(reason)

    def renew(self, worker: str) -> None:
        self.renewals += 1


def lease(prompt: Prompt, version: int = 0) -> SamplingLease:
    return SamplingLease(prompt, "sampler-0", 1, version, SEEDS, tuple(range(len(SEEDS))))


def test_work_is_one_lease(model: ModelFolder, prompt: Prompt) -> None:
    sampler, desk = Sampler(model, config()), Desk(lease(prompt))
    assert sampler.work(cast(SamplerExchange, desk)) == 4
    assert [candidate.index for candidate in desk.candidates] == [0, 1, 2, 3]
    assert desk.conditionings == [sampler.encode(prompt)]
    assert (desk.failures, desk.renewals) == ([], 2)
    assert sampler.work(cast(SamplerExchange, desk)) == 0


def test_only_the_leased_candidates_are_sampled(model: ModelFolder, prompt: Prompt) -> None:
    rest = Desk(replace(lease(prompt), indices=(2,), encoded=True))
    sampler, desk = Sampler(model, config()), Desk(lease(prompt))
    sampler.work(cast(SamplerExchange, desk))
    sampler.work(cast(SamplerExchange, rest))
    assert rest.candidates == [desk.candidates[2]]
    assert rest.conditionings == []
    assert rest.renewals == 1


def test_a_lost_lease_ends_the_group_and_a_duplicate_does_not(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config())
    desk = Desk(lease(prompt), answers=iter([Submitted(False, "duplicate"), Submitted(False, "lease lost")]))
    assert sampler.work(cast(SamplerExchange, desk))
    assert [candidate.index for candidate in desk.candidates] == [0, 1]
    assert desk.failures == []


def test_bad_input_returns_the_lease_with_a_reason(model: ModelFolder, prompt: Prompt) -> None:
    sampler = Sampler(model, config())
    desk = Desk(lease(replace(prompt, image=None)), lease(replace(prompt, image=b"no picture")))
    assert sampler.work(cast(SamplerExchange, desk))
    assert sampler.work(cast(SamplerExchange, desk))
    assert "no first frame; an image-to-video model needs one" in desk.failures[0]
    assert f"prompt '{prompt.id}': broken image" in desk.failures[1]
    assert not any("\n" in reason for reason in desk.failures)


def test_non_finite_latents_return_the_lease(model: ModelFolder, prompt: Prompt, tmp_path: Path) -> None:
    sampler = Sampler(model, config())
    state = shifted(model)
    state["proj_out.bias"] = torch.full_like(state["proj_out.bias"], float("nan"))
    sampler.load(publish(tmp_path, state, 1), state)
    desk = Desk(lease(prompt, version=1))
    assert sampler.work(cast(SamplerExchange, desk))
    assert desk.failures == ["non-finite latents under version 1, seeds [101, 102]"]
    assert desk.candidates == []


def test_a_lease_of_another_version_is_an_error(model: ModelFolder, prompt: Prompt) -> None:
    with pytest.raises(RuntimeError, match="holds version 0 but was leased version 2"):
        Sampler(model, config()).work(cast(SamplerExchange, Desk(lease(prompt, version=2))))
