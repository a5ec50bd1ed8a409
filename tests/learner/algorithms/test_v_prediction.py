"""The random draws of a step (shared, stratified, a function of seed, step and ordinal), and the v error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from common.models.noise_schedule import NoiseSchedule
from learner.algorithms import v_prediction
from learner.algorithms.v_prediction import Draw, draw, stratified_timesteps, v_errors
from learner.batch import Batch, collate
from tests.support.learner.fakes import LATENT, make_group, tiny_config

COGVIDEOX_5B: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
SCHEDULE = NoiseSchedule.from_config(COGVIDEOX_5B)
ORDINALS = (3, 4, 5, 6)
PAIRS = collate([make_group(ordinal) for ordinal in ORDINALS])
EMPTY = torch.full(PAIRS.prompt_embeds.shape[1:], 7.0)


def drawn(pairs: Batch = PAIRS, seed: int = 0, step: int = 1, image_scale: float = 0.7, **learner: Any) -> Draw:
    rules = tiny_config(**learner).learner
    return draw(seed, step, ORDINALS, rules, pairs, steps=1000, padding=0, image_scale=image_scale)


def same(one: Draw, other: Draw) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in Draw.__dataclass_fields__)


def test_a_part_of_a_batch_draws_the_same_as_the_full_batch() -> None:
    rules = {"caption_drop": 0.5, "image_drop": 0.5, "image_noise": True}
    whole, part = drawn(**rules), drawn(PAIRS.part(1, 3), **rules)
    assert torch.equal(part.noise, whole.noise[1:3])
    assert torch.equal(part.timesteps, whole.timesteps[1:3])
    assert torch.equal(part.drop_caption, whole.drop_caption[1:3])
    assert torch.equal(part.drop_image, whole.drop_image[1:3])
    assert torch.equal(part.image_noise, whole.image_noise[1:3])


def test_equal_steps_draw_the_same_and_others_differ() -> None:
    torch.manual_seed(1)
    first = drawn()
    torch.manual_seed(2)
    assert same(first, drawn())
    assert not torch.equal(first.noise, drawn(seed=1).noise)
    assert not torch.equal(first.noise, drawn(step=2).noise)
    assert not torch.equal(first.noise[0], first.noise[1])


def test_the_noise_is_standard_normal() -> None:
    noise = drawn().noise
    assert noise.shape == (4, *LATENT)
    assert abs(noise.mean().item()) < 0.05
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_each_stratum_gets_one_timestep(count: int) -> None:
    for step in range(20):
        timesteps = stratified_timesteps(0, step, range(count), 1000).values()
        assert sorted(t * count // 1000 for t in timesteps) == list(range(count))


def test_which_group_gets_which_stratum_changes() -> None:
    firsts = {stratified_timesteps(0, step, range(4), 1000)[0] // 250 for step in range(40)}
    assert firsts == {0, 1, 2, 3}


def test_drops_have_the_configured_rates() -> None:
    pairs = collate([make_group(ordinal) for ordinal in range(200)])
    pairs = replace(pairs, latents=pairs.latents[..., :1, :1])
    rules = tiny_config(caption_drop=0.3, image_drop=0.1).learner
    result = draw(0, 1, range(200), rules, pairs, steps=1000, padding=0, image_scale=0.7)
    assert result.drop_caption.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert result.drop_image.float().mean().item() == pytest.approx(0.1, abs=0.06)
    assert not drawn().drop_caption.any()
    assert drawn(image_drop=1.0).drop_image.all()


def test_image_noise_is_added_before_the_scaling_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """sigma is exp(N(-3, 0.5)) per clip, on the latent that the factor has not scaled yet."""
    assert not drawn().image_noise.any()
    pairs = collate([make_group(ordinal) for ordinal in range(200)])
    rules = tiny_config(image_noise=True).learner
    noise = draw(0, 1, range(200), rules, pairs, steps=1000, padding=0, image_scale=0.7).image_noise
    assert noise.shape == (200, 2, 1, *LATENT[1:])
    log_sigmas = (noise.flatten(2).std(2) / 0.7).log()
    assert log_sigmas.mean().item() == pytest.approx(-3.0, abs=0.1)  # 400 clips: a standard error of 0.025
    assert log_sigmas.std().item() == pytest.approx(0.5, abs=0.08)
    assert torch.corrcoef(log_sigmas.T)[0, 1].abs() < 0.25  # chosen and rejected have their own sigma
    monkeypatch.setattr(v_prediction, "IMAGE_NOISE_LOG_STD", 0.0)
    whole, scaled = (drawn(image_noise=True, image_scale=scale).image_noise for scale in (1.0, 0.7))
    eps = whole / 0.049787  # exp(-3)
    assert eps.std().item() == pytest.approx(1.0, abs=0.05)
    unscaled = torch.full_like(eps, 2.0)
    torch.testing.assert_close(0.7 * unscaled + scaled, 0.7 * (unscaled + 0.049787 * eps))


def test_image_noise_is_each_clips_own() -> None:
    model, chance = Recorder(), drawn(image_noise=True)
    v_errors(model, SCHEDULE, PAIRS, chance, None)
    assert PAIRS.image_latent is not None
    assert model.image is not None
    noise = model.image - torch.cat([PAIRS.image_latent] * 2)
    torch.testing.assert_close(noise, torch.cat(list(chance.image_noise.unbind(1))))
    assert (noise[:4] - noise[4:]).abs().min(0).values.max() > 0.01


class Recorder:
    """A model that notes its call and predicts zero."""

    def __call__(
        self, x_t: torch.Tensor, image: torch.Tensor | None, timesteps: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        self.x_t, self.image, self.timesteps, self.text = x_t, image, timesteps, text
        return torch.zeros_like(x_t)


def test_candidates_share_time_noise_and_condition() -> None:
    model, chance = Recorder(), drawn(caption_drop=0.5, image_drop=0.5)
    v_errors(model, SCHEDULE, PAIRS, chance, EMPTY)
    for tensor in (model.timesteps, model.image, model.text):
        assert tensor is not None
        assert torch.equal(*tensor.chunk(2))
    signal, noise = SCHEDULE.shares(chance.timesteps, PAIRS.latents[:, 0])
    for x_t, x0 in zip(model.x_t.chunk(2), PAIRS.latents.unbind(1), strict=True):
        torch.testing.assert_close((x_t - signal * x0) / noise, chance.noise, atol=1e-3, rtol=1e-3)


def test_the_error_of_a_model_that_predicts_zero_is_the_targets_mean_square() -> None:
    """Against diffusers' scheduler, and three mutations of what is right."""
    chance, scheduler = drawn(), CogVideoXDPMScheduler(**COGVIDEOX_5B)
    chosen, rejected = v_errors(Recorder(), SCHEDULE, PAIRS, chance, None).unbind(1)
    velocity = scheduler.get_velocity(PAIRS.latents[:, 1], chance.noise, chance.timesteps)  # type: ignore[arg-type]
    expected = torch.stack([one.pow(2).mean() for one in velocity])
    assert chosen.shape == rejected.shape == (4,)
    torch.testing.assert_close(rejected, expected, rtol=1e-4, atol=1e-5)
    epsilon_target = chance.noise.pow(2).mean((1, 2, 3, 4))
    unshared = scheduler.get_velocity(PAIRS.latents[:, 1], drawn(seed=9).noise, chance.timesteps)  # type: ignore[arg-type]
    shifted = CogVideoXDPMScheduler(**(COGVIDEOX_5B | {"snr_shift_scale": 3.0}))
    rescaled = shifted.get_velocity(PAIRS.latents[:, 1], chance.noise, chance.timesteps)  # type: ignore[arg-type]
    for wrong in (epsilon_target, unshared.pow(2).mean((1, 2, 3, 4)), rescaled.pow(2).mean((1, 2, 3, 4))):
        assert (wrong - rejected).abs().max() > 1e-3


def test_dropped_captions_and_images_are_empty() -> None:
    model = Recorder()
    v_errors(model, SCHEDULE, PAIRS, drawn(caption_drop=1.0, image_drop=1.0), EMPTY)
    assert model.image is not None
    assert not model.image.any()
    assert (model.text == 7.0).all()
    v_errors(model, SCHEDULE, PAIRS, drawn(), EMPTY)
    assert torch.equal(model.text.chunk(2)[0], PAIRS.prompt_embeds)
    assert PAIRS.image_latent is not None
    assert torch.equal(model.image.chunk(2)[0], PAIRS.image_latent)


@pytest.mark.parametrize("kept", [1, 3])
def test_all_kept_candidates_share_one_forward_pass(kept: int) -> None:
    """Each candidate's error is the one that it has alone."""
    model, chance = Recorder(), drawn()
    batch = collate([make_group(ordinal, kept=kept) for ordinal in ORDINALS])
    errors = v_errors(model, SCHEDULE, batch, chance, None)
    assert errors.shape == (len(ORDINALS), kept)
    assert len(model.x_t) == len(model.timesteps) == len(model.text) == kept * len(ORDINALS)
    for place in range(kept):
        alone = replace(batch, latents=batch.latents[:, place : place + 1])
        torch.testing.assert_close(v_errors(model, SCHEDULE, alone, chance, None)[:, 0], errors[:, place])


def test_dropping_captions_needs_the_empty_caption() -> None:
    with pytest.raises(ValueError, match="empty caption"):
        v_errors(Recorder(), SCHEDULE, PAIRS, drawn(caption_drop=1.0), None)


def test_text_to_video_has_no_image() -> None:
    model = Recorder()
    v_errors(model, SCHEDULE, replace(PAIRS, image_latent=None), drawn(image_drop=1.0), None)
    assert model.image is None


def test_bfloat16_latents_give_float32_errors() -> None:
    half = replace(PAIRS, latents=PAIRS.latents.bfloat16())
    assert v_errors(Recorder(), SCHEDULE, half, drawn(), None).dtype == torch.float32


def test_candidates_may_have_separate_conditions() -> None:
    """Every number by hand: v is predicted to be image + text + dropped nothing, v* is 0.6 eps - 0.8 x0."""

    class Flat:
        def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x0

        def v_target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.6 * noise - 0.8 * x0

    def predict(x_t, image, t, text):
        return torch.zeros_like(x_t) + image + text.mean((1, 2)).view(-1, 1, 1, 1, 1)

    def whole(value: float, *shape: int) -> torch.Tensor:
        return torch.full(shape, value)

    text = torch.stack([whole(1.0, 1, 2, 3), whole(3.0, 1, 2, 3)], 1)  # captions: chosen 1, rejected 3
    image = torch.stack([whole(0.5, 1, 1, 2, 2, 2), whole(-2.0, 1, 1, 2, 2, 2)], 1)
    pairs = Batch(
        (7,), torch.stack([whole(1.0, 1, 2, 2, 2, 2), whole(2.0, 1, 2, 2, 2, 2)], 1), text, image,
        torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1),
    )  # fmt: skip
    flags = torch.zeros(1, dtype=torch.bool)
    drawn = Draw(torch.tensor([5]), whole(1.0, 1, 2, 2, 2, 2), flags, flags, torch.zeros(1, 2, 1, 2, 2, 2))
    chosen, rejected = v_errors(predict, Flat(), pairs, drawn, None)[0]  # type: ignore[arg-type]
    # chosen: v = 0.5 + 1 = 1.5, v* = 0.6 - 0.8 = -0.2; rejected: v = -2 + 3 = 1, v* = 0.6 - 1.6 = -1
    assert chosen.item() == pytest.approx(1.7**2)
    assert rejected.item() == pytest.approx(2.0**2)
    dropped = Draw(drawn.timesteps, drawn.noise, ~flags, ~flags, drawn.image_noise)
    chosen, rejected = v_errors(predict, Flat(), pairs, dropped, whole(0.25, 2, 3))[0]  # type: ignore[arg-type]
    assert (chosen.item(), rejected.item()) == (pytest.approx(0.45**2), pytest.approx(1.25**2))
