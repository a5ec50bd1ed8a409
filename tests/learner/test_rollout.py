"""Denoising in the learner: the sampler's steps, with a gradient through the last ones only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.denoise import Condition, denoise
from common.config import RunConfig
from common.models.cogvideox import ModelFolder, decode_latents
from common.weights.tensors import to_array
from learner.batch import Batch, collate
from learner.learner import Learner
from learner.rollout import Rollout
from tests.support.learner.fakes import MemoryExchange, brightness, make_group, policy_state, tiny_config, tiny_model
from tests.support.tiny import FAMILIES, TEXT_LENGTH, TEXT_WIDTH

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 5
EMPTY = torch.full((TEXT_LENGTH, TEXT_WIDTH), 0.5)


def config_of(guidance: float = 1.0, name: str = "refl", **algorithm: Any) -> RunConfig:
    config = tiny_config({"name": name, **algorithm})
    return config.model_copy(
        update={"sampler": config.sampler.model_copy(update={"steps": STEPS, "guidance": guidance})}
    )


def batch_of(*ordinals: int) -> Batch:
    return collate([make_group(ordinal, kept=1) for ordinal in ordinals])


class Opened:
    """A learner with a reward, whose rollouts can be looked at."""

    def __init__(self, folder: Path, config: RunConfig, model: ModelFolder | None = None) -> None:
        self.model = model or tiny_model(folder / "model", perturb=0.2)
        self.learner = Learner(self.model, config, folder / "run", rewards=brightness)
        self.learner.empty_embeds = to_array(EMPTY)

    def rollout(self, *ordinals: int) -> Rollout:
        batch = batch_of(*ordinals)
        made = self.learner._loss_inputs(batch, batch.weights, slice(0, len(batch)))
        assert isinstance(made, Rollout)
        return made

    def sampled(self, rollout: Rollout, row: int) -> torch.Tensor:
        """What the sampler's DDIM loop makes of the same noise, [F, C, h, w]."""
        image = rollout.batch.image_latent
        condition = Condition(rollout.batch.prompt_embeds[row], None if image is None else image[row], EMPTY)
        shape = tuple(rollout.batch.latents.shape[2:])
        transformer = self.model.load_transformer("float32", "cpu")
        settings, noise = self.learner.config.sampler, rollout.noise()[row]
        return denoise(transformer, self.model.make_scheduler("ddim"), condition, [0], shape, settings, noise)[0]  # type: ignore[arg-type]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    one = Opened(tmp_path, config_of())
    yield one
    one.learner.close()


@pytest.mark.parametrize("family", ["5B-I2V", "1.5-5B-I2V", "2B"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_clips_are_the_samplers(tmp_path: Path, family: str, guidance: float) -> None:
    """Same noise, same guidance, same DDIM steps; the padding of CogVideoX 1.5 is denoised and left out."""
    model = tiny_model(tmp_path / "model", perturb=0.2, **FAMILIES[family])
    opened = Opened(tmp_path, config_of(guidance), model)
    rollout = opened.rollout(3, 4)
    if not model.image_conditioned:
        rollout = replace(rollout, batch=replace(rollout.batch, image_latent=None))
    with torch.no_grad():
        ours = rollout.denoise(rollout.noise(), gradient_steps=0)[:, rollout.padding :]
    assert ours.shape == rollout.batch.latents[:, 0].shape
    assert ours.std() > 0.1
    for row in range(2):
        torch.testing.assert_close(ours[row], opened.sampled(rollout, row), atol=1e-4, rtol=0)
    opened.learner.close()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_gradient_goes_through_the_last_steps(opened: Opened, count: int) -> None:
    calls: list[bool] = []
    rollout = opened.rollout(0)
    counted = replace(
        rollout, predict=lambda *inputs: calls.append(torch.is_grad_enabled()) or rollout.predict(*inputs)
    )
    clean = counted.denoise(counted.noise(), gradient_steps=count)
    assert calls == [False] * (STEPS - count) + [True] * count
    assert clean.requires_grad is (count > 0)


def test_one_step_by_hand(opened: Opened) -> None:
    """x_{S-1} -> x_S is the prediction of the clean latents: sqrt(a) x - sqrt(1 - a) v, with a = a_t of t_{S-1}."""
    rollout = opened.rollout(0)
    x, last = rollout.noise(), STEPS - 1
    timestep = rollout.timesteps[last]
    a = rollout.models.schedule.alphas_cumprod[timestep].float()
    v = rollout.predict(x, rollout.batch.image_latent, torch.tensor([timestep]), rollout.batch.prompt_embeds)
    expected = a.sqrt() * x - (1 - a).sqrt() * v
    torch.testing.assert_close(rollout.clean(x, last), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.denoise(x, last, gradient_steps=1), expected, atol=1e-3, rtol=0)


def test_a_sampled_clip_is_made_noisy(opened: Opened) -> None:
    """sqrt(a) x0 + sqrt(1 - a) eps."""
    rollout = opened.rollout(0)
    a = rollout.models.schedule.alphas_cumprod[rollout.timesteps[2]].float()
    expected = a.sqrt() * rollout.batch.latents[:, 0] + (1 - a).sqrt() * rollout.noise()
    torch.testing.assert_close(rollout.noisy(0, 2), expected)


def test_draws_do_not_depend_on_the_micro_batch(opened: Opened) -> None:
    both, second = opened.rollout(3, 4), opened.rollout(4)
    assert both.noise()[1:].equal(second.noise())
    assert not both.noise()[0].equal(both.noise()[1])
    assert not replace(second, step=2).noise().equal(second.noise())


def test_the_reward_sees_the_decoded_frames_and_their_prompts(opened: Opened) -> None:
    rollout = opened.rollout(0, 1)
    latents = rollout.batch.latents[:, 0]
    pixels = (decode_latents(rollout.models.vae, latents) / 2 + 0.5).clamp(0, 1)
    found = rollout.reward(latents)
    assert found.shape == (2, 9)
    torch.testing.assert_close(found, pixels.mean((2, 3, 4)) * torch.tensor([[1.0], [2.0]]))


def test_guidance_needs_the_empty_caption(tmp_path: Path) -> None:
    opened = Opened(tmp_path, config_of(4.0))
    with pytest.raises(ValueError, match="guidance needs the embedding of the empty caption"):
        replace(opened.rollout(0), empty_embeds=None).denoise(torch.zeros(1, 3, 4, 12, 16), gradient_steps=0)
    opened.learner.close()


LEARNING = [
    ("refl", {}),
    ("vader", {"frames": 0}),
    ("vader", {"frames": 3, "gradient_steps": 2}),
    ("instruct_video", {}),
]


@pytest.mark.parametrize(("name", "own"), LEARNING)
def test_training_raises_the_reward(tmp_path: Path, name: str, own: dict[str, Any]) -> None:
    """The clips of the trained policy are brighter, for the same noise."""
    opened = Opened(tmp_path, config_of(name=name, **own))

    def level() -> float:
        rollout = replace(opened.rollout(0, 1), step=1)
        with torch.no_grad():
            return rollout.reward(rollout.denoise(rollout.noise(), gradient_steps=0)).mean().item()

    before, exchange = level(), MemoryExchange(gap=1.0, kept=1)
    for _ in range(8):
        stats = opened.learner.work(exchange)  # type: ignore[arg-type]
        assert stats is not None
        assert stats.loss == pytest.approx(-stats.metrics["rollout_reward"], rel=1e-5)
    assert level() > before + 0.02
    opened.learner.close()


@pytest.mark.parametrize("name", ["refl", "vader", "instruct_video"])
def test_a_resumed_learner_trains_the_same_weights(tmp_path: Path, name: str) -> None:
    config = config_of(name=name)
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"checkpoint_every": 2})})
    states = []
    for stop in (2, 4):
        opened, exchange = Opened(tmp_path, config), MemoryExchange(gap=1.0, kept=1)
        opened.learner.resume(exchange)  # type: ignore[arg-type]
        assert opened.learner.step == stop - 2
        while opened.learner.step < stop:
            opened.learner.work(exchange)  # type: ignore[arg-type]
        states.append(policy_state(opened.learner))
        opened.learner.close()
    through = Opened(tmp_path / "through", config, tiny_model(tmp_path / "model", perturb=0.2))
    exchange = MemoryExchange(gap=1.0, kept=1)
    while through.learner.step < 4:
        through.learner.work(exchange)  # type: ignore[arg-type]
    whole = policy_state(through.learner)
    assert all(whole[name].equal(states[1][name]) for name in whole)
    through.learner.close()


def test_micro_batches_add_up(tmp_path: Path) -> None:
    """Two groups at once and one after the other give the same weights."""
    states = []
    for size in (2, 1):
        config = config_of(name="instruct_video")
        config = config.model_copy(update={"learner": config.learner.model_copy(update={"micro_batch": size})})
        opened = Opened(tmp_path / str(size), config, tiny_model(tmp_path / "model", perturb=0.2))
        opened.learner.work(MemoryExchange(gap=1.0, kept=1))  # type: ignore[arg-type]
        states.append(policy_state(opened.learner))
        opened.learner.close()
    one, other = states
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4
