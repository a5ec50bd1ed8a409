"""What is random in a step: shared, stratified, and a function of (seed, step, ordinal). And the v error itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from common.models.noise_schedule import NoiseSchedule
from learner.algorithms import Draw, draw, v_errors
from learner.algorithms.v_prediction import stratified_timesteps
from learner.batch import PairBatch, collate
from tests.support.learner.fakes import LATENT, make_pair, tiny_config

COGVIDEOX_5B: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
SCHEDULE = NoiseSchedule.from_config(COGVIDEOX_5B)
ORDINALS = (3, 4, 5, 6)
PAIRS = collate([make_pair(ordinal) for ordinal in ORDINALS])
EMPTY = torch.full(PAIRS.prompt_embeds.shape[1:], 7.0)


def drawn(pairs: PairBatch = PAIRS, seed: int = 0, step: int = 1, **learner: Any) -> Draw:
    return draw(seed, step, ORDINALS, tiny_config(**learner).learner, pairs, 1000)


def same(one: Draw, other: Draw) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in Draw.__dataclass_fields__)


def test_parts_of_a_batch_draw_what_the_whole_draws() -> None:
    rules = {"caption_drop": 0.5, "image_drop": 0.5, "image_noise": True}
    whole, part = drawn(**rules), drawn(PAIRS.part(1, 3), **rules)
    assert torch.equal(part.noise, whole.noise[1:3])
    assert torch.equal(part.timesteps, whole.timesteps[1:3])
    assert torch.equal(part.drop_caption, whole.drop_caption[1:3])
    assert torch.equal(part.drop_image, whole.drop_image[1:3])
    assert torch.equal(part.image_noise, whole.image_noise[1:3])


def test_a_step_repeats_and_every_other_differs() -> None:
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


def test_which_pair_gets_which_stratum_changes() -> None:
    firsts = {stratified_timesteps(0, step, range(4), 1000)[0] // 250 for step in range(40)}
    assert firsts == {0, 1, 2, 3}


def test_drops_happen_as_often_as_asked() -> None:
    pairs = collate([make_pair(ordinal) for ordinal in range(200)])
    pairs = replace(pairs, winner=pairs.winner[:, :, :, :1, :1])
    rules = tiny_config(caption_drop=0.3, image_drop=0.1).learner
    result = draw(0, 1, range(200), rules, pairs, 1000)
    assert result.drop_caption.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert result.drop_image.float().mean().item() == pytest.approx(0.1, abs=0.06)
    assert not drawn().drop_caption.any()
    assert drawn(image_drop=1.0).drop_image.all()


def test_image_noise_has_the_trainers_scale() -> None:
    assert not drawn().image_noise.any()
    noise = drawn(image_noise=True).image_noise
    assert noise.shape == (4, 1, *LATENT[1:])
    sigmas = noise.flatten(1).std(1)
    assert all(0.005 < sigma < 0.35 for sigma in sigmas)  # exp(-3 +- 4 x 0.5)
    assert len(set(sigmas.tolist())) == 4


class Recorder:
    """A model that notes its call and predicts zero."""

    def __call__(
        self, x_t: torch.Tensor, image: torch.Tensor | None, timesteps: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        self.x_t, self.image, self.timesteps, self.text = x_t, image, timesteps, text
        return torch.zeros_like(x_t)


def test_winner_and_loser_share_time_noise_and_condition() -> None:
    model, chance = Recorder(), drawn(image_noise=True, caption_drop=0.5, image_drop=0.5)
    v_errors(model, SCHEDULE, PAIRS, chance, EMPTY)
    for tensor in (model.timesteps, model.image, model.text):
        assert tensor is not None
        assert torch.equal(*tensor.chunk(2))
    signal, noise = SCHEDULE.shares(chance.timesteps, PAIRS.winner)
    for x_t, x0 in zip(model.x_t.chunk(2), (PAIRS.winner, PAIRS.loser), strict=True):
        torch.testing.assert_close((x_t - signal * x0) / noise, chance.noise, atol=1e-3, rtol=1e-3)


def test_the_error_of_a_model_that_predicts_zero_is_the_targets_mean_square() -> None:
    """Against diffusers' scheduler, and three mutations of what is right."""
    chance, scheduler = drawn(), CogVideoXDPMScheduler(**COGVIDEOX_5B)
    winner, loser = v_errors(Recorder(), SCHEDULE, PAIRS, chance, None)
    velocity = scheduler.get_velocity(PAIRS.loser, chance.noise, chance.timesteps)  # type: ignore[arg-type]
    expected = torch.stack([one.pow(2).mean() for one in velocity])
    assert winner.shape == loser.shape == (4,)
    torch.testing.assert_close(loser, expected, rtol=1e-4, atol=1e-5)
    epsilon_target = chance.noise.pow(2).mean((1, 2, 3, 4))
    unshared = scheduler.get_velocity(PAIRS.loser, drawn(seed=9).noise, chance.timesteps)  # type: ignore[arg-type]
    shifted = CogVideoXDPMScheduler(**(COGVIDEOX_5B | {"snr_shift_scale": 3.0}))
    rescaled = shifted.get_velocity(PAIRS.loser, chance.noise, chance.timesteps)  # type: ignore[arg-type]
    for wrong in (epsilon_target, unshared.pow(2).mean((1, 2, 3, 4)), rescaled.pow(2).mean((1, 2, 3, 4))):
        assert (wrong - loser).abs().max() > 1e-3


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


def test_a_clip_against_itself_is_passed_once() -> None:
    """With the errors that both halves would have; any difference between the two brings the second half back."""
    model, chance = Recorder(), drawn(image_noise=True)
    itself = replace(PAIRS, loser=PAIRS.winner.clone())
    winner, loser = v_errors(model, SCHEDULE, itself, chance, None)
    assert len(model.x_t) == len(model.timesteps) == len(model.text) == len(PAIRS)
    assert model.image is not None
    assert len(model.image) == len(PAIRS)
    expected, _ = v_errors(model, SCHEDULE, PAIRS, chance, None)
    assert len(model.x_t) == 2 * len(PAIRS)
    torch.testing.assert_close(winner, expected)
    assert torch.equal(loser, winner)
    assert PAIRS.image_latent is not None
    text, image = (torch.stack([one, one], 1) for one in (PAIRS.prompt_embeds, PAIRS.image_latent))
    assert replace(itself, prompt_embeds=text, image_latent=image).alone
    other = image.index_add(1, torch.tensor([1]), image[:, :1])
    assert not replace(itself, prompt_embeds=text, image_latent=other).alone
    assert not replace(itself, prompt_embeds=torch.stack([PAIRS.prompt_embeds, 2 * PAIRS.prompt_embeds], 1)).alone


def test_dropping_captions_needs_the_empty_one() -> None:
    with pytest.raises(ValueError, match="empty caption"):
        v_errors(Recorder(), SCHEDULE, PAIRS, drawn(caption_drop=1.0), None)


def test_text_to_video_has_no_image() -> None:
    model = Recorder()
    v_errors(model, SCHEDULE, replace(PAIRS, image_latent=None), drawn(image_drop=1.0), None)
    assert model.image is None


def test_bfloat16_latents_give_float32_errors() -> None:
    half = replace(PAIRS, winner=PAIRS.winner.bfloat16(), loser=PAIRS.loser.bfloat16())
    assert v_errors(Recorder(), SCHEDULE, half, drawn(), None)[0].dtype == torch.float32


def test_winner_and_loser_may_have_conditions_of_their_own() -> None:
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

    text = torch.stack([whole(1.0, 1, 2, 3), whole(3.0, 1, 2, 3)], 1)  # winner's caption 1, loser's 3
    image = torch.stack([whole(0.5, 1, 1, 2, 2, 2), whole(-2.0, 1, 1, 2, 2, 2)], 1)
    pairs = PairBatch(
        (7,), whole(1.0, 1, 2, 2, 2, 2), whole(2.0, 1, 2, 2, 2, 2), text, image,
        torch.ones(1), torch.tensor([[1.0, 0.0]]), torch.zeros(1),
    )  # fmt: skip
    flags = torch.zeros(1, dtype=torch.bool)
    drawn = Draw(torch.tensor([5]), whole(1.0, 1, 2, 2, 2, 2), flags, flags, torch.zeros(1, 1, 2, 2, 2))
    winner, loser = v_errors(predict, Flat(), pairs, drawn, None)  # type: ignore[arg-type]
    # winner: v = 0.5 + 1 = 1.5, v* = 0.6 - 0.8 = -0.2; loser: v = -2 + 3 = 1, v* = 0.6 - 1.6 = -1
    assert winner.item() == pytest.approx(1.7**2)
    assert loser.item() == pytest.approx(2.0**2)
    dropped = Draw(drawn.timesteps, drawn.noise, ~flags, ~flags, drawn.image_noise)
    winner, loser = v_errors(predict, Flat(), pairs, dropped, whole(0.25, 2, 3))  # type: ignore[arg-type]
    assert (winner.item(), loser.item()) == (pytest.approx(0.45**2), pytest.approx(1.25**2))
