"""The denoising loop against diffusers' pipeline: same seeds, same latents. All families: tests/common/models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.denoise import Condition, denoise
from actors.sampler import Sampler
from common.config import SamplerConfig, load_config
from common.errors import ConfigError
from common.images import encode_png, first_frame
from common.messages import Prompt
from common.models.cogvideox import ModelFolder, encode_image, encode_text, open_model, to_unit
from common.weights.tensors import from_array
from tests.support.reference import open_pipeline, pipeline_latents
from tests.support.tiny import FRAMES, HEIGHT, WIDTH, tiny_pipeline

SEEDS = (11, 12, 13)
STEPS = 4
TEXT = "a robot walks right"
TOLERANCE = 1e-4


def picture() -> torch.Tensor:
    """uint8 [H, W, 3]."""
    return torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def theirs(model: ModelFolder, kind: str, guidance: float) -> torch.Tensor:
    """The pipeline's latents [N, F, C, h, w] of SEEDS."""
    pipe = open_pipeline(model.path)
    return pipeline_latents(pipe, picture().numpy(), TEXT, SEEDS, kind=kind, steps=STEPS, guidance=guidance)


def condition(model: ModelFolder) -> Condition:
    tokenizer, encoder = model.load_tokenizer(), model.load_text_encoder("float32", "cpu")
    with torch.no_grad():
        empty, text = encode_text(tokenizer, encoder, ["", TEXT], model.max_text_length)
        image = None
        if model.image_conditioned:
            image = encode_image(model.load_vae("float32", "cpu"), to_unit(picture())[None])[0]
    return Condition(text, image, empty)


def ours(
    model: ModelFolder, kind: Any, guidance: float, given: Condition | None = None, seeds: tuple[int, ...] = SEEDS
) -> torch.Tensor:
    shape = model.latent_shape(FRAMES, HEIGHT, WIDTH)
    transformer = model.load_transformer("float32", "cpu")
    scheduler = model.make_scheduler(kind)
    settings = SamplerConfig(steps=STEPS, guidance=guidance)
    return denoise(transformer, scheduler, given or condition(model), seeds, shape, settings).clone()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(tiny_pipeline(tmp_path_factory.mktemp("i2v")))


@pytest.mark.parametrize("kind", ["dpm", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_parity_with_the_image_to_video_pipeline(model: ModelFolder, kind: str, guidance: float) -> None:
    expected = theirs(model, kind, guidance)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(model, kind, guidance), expected, atol=TOLERANCE, rtol=0)


def test_a_wide_posterior_differs_only_by_mode_against_sample(tmp_path: Path) -> None:
    model = open_model(tiny_pipeline(tmp_path, posterior_logvar=-2.0))
    expected, given = theirs(model, "dpm", 1.0), condition(model)
    assert (ours(model, "dpm", 1.0, given) - expected).abs().max() > 100 * TOLERANCE
    vae = model.load_vae("float32", "cpu")
    posterior = vae.encode(to_unit(picture())[None, :, None]).latent_dist  # type: ignore[union-attr]
    for row, seed in enumerate(SEEDS):
        drawn = posterior.sample(torch.Generator().manual_seed(seed)).transpose(1, 2)[0]
        image = vae.config["scaling_factor"] * drawn
        mine = ours(model, "dpm", 1.0, replace(given, image_latent=image), (seed,))
        torch.testing.assert_close(mine[0], expected[row], atol=TOLERANCE, rtol=0)


def test_an_image_of_another_shape_is_cropped_where_the_pipeline_squeezes_it(model: ModelFolder) -> None:
    """So an exported pipeline gives the same latents for the cropped image, and others for the whole one."""
    wide = np.random.default_rng(2).integers(0, 256, (HEIGHT, 2 * WIDTH, 3), np.uint8)
    flags = {"sampler.steps": STEPS, "sampler.scheduler": "ddim"}
    sampler, prompt = Sampler(model, load_config(flags=flags)), Prompt(0, "p", TEXT, encode_png(wide))
    group = sampler.sample(prompt, sampler.encode(prompt), SEEDS, range(len(SEEDS)))
    latents, pipe = torch.stack([from_array(one.latents) for one in group]), open_pipeline(model.path)
    for image, equal in ((first_frame(encode_png(wide), HEIGHT, WIDTH), True), (wide, False)):
        expected = pipeline_latents(pipe, image, TEXT, SEEDS, kind="ddim", steps=STEPS)
        assert ((latents - expected).abs().max() < TOLERANCE) == equal


MUTATIONS = {
    "the image latent without the VAE's scale": lambda c, model: replace(
        c, image_latent=c.image_latent / model.vae_config["scaling_factor"]
    ),
    "no image condition": lambda c, model: replace(c, image_latent=torch.zeros_like(c.image_latent)),
    "no caption": lambda c, model: replace(c, prompt_embeds=c.empty_embeds),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", ["dpm", "ddim"])
def test_a_mutated_condition_breaks_parity(model: ModelFolder, mutation: str, kind: str) -> None:
    mutated = MUTATIONS[mutation](condition(model), model)
    error = (ours(model, kind, 6.0, mutated) - theirs(model, kind, 6.0)).abs().max()
    assert error > 10 * TOLERANCE, mutation


def test_another_seed_breaks_parity_of_its_candidate_alone(model: ModelFolder) -> None:
    error = (ours(model, "dpm", 1.0, seeds=(11, 99, 13)) - theirs(model, "dpm", 1.0)).abs().amax((1, 2, 3, 4))
    assert error[1] > 0.1
    assert error[[0, 2]].max() < TOLERANCE


def test_guidance_drops_the_caption_and_keeps_the_image(model: ModelFolder) -> None:
    """With equal captions both predictions are equal, so any guidance gives what none gives."""
    given = condition(model)
    same = replace(given, empty_embeds=given.prompt_embeds)
    torch.testing.assert_close(ours(model, "dpm", 6.0, same), ours(model, "dpm", 1.0), atol=TOLERANCE, rtol=0)


def test_guidance_needs_the_empty_caption(model: ModelFolder) -> None:
    with pytest.raises(ValueError, match="empty caption"):
        ours(model, "dpm", 6.0, replace(condition(model), empty_embeds=None))


def test_dynamic_guidance_without_guidance_is_refused() -> None:
    with pytest.raises(ConfigError, match="dynamic_guidance = true: needs guidance above 1"):
        load_config(flags={"sampler.dynamic_guidance": "on"})
