"""DDIM inversion: by hand, against diffusers' inverse scheduler, there and back, and as `douga sample` uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler

from actors import ddim_inversion
from actors.ddim_inversion import InvertedSampler, invert
from actors.denoise import Condition, denoise
from common.config import ModelConfig, SamplerConfig, load_config
from common.data.video import decode_clip, encode_mp4
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from common.models.cogvideox import ModelFolder, open_model, predict_v
from common.models.shapes import front_padding
from common.weights.tensors import from_array
from deploy.cli.main import main
from tests.actors.test_denoise import condition
from tests.support.rewarders.survey import frames
from tests.support.tiny import FAMILIES, FRAMES, HEIGHT, WIDTH, tiny_pipeline


def clean(model: ModelFolder) -> torch.Tensor:
    """Latents [F, C, h, w] that no model made."""
    shape = model.latent_shape(FRAMES, HEIGHT, WIDTH)
    return 0.8 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(tiny_pipeline(tmp_path_factory.mktemp("i2v") / "model", perturb=0.3))


def test_by_hand(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps up a ladder with a = 0.64, then 0: x0 = 2, v = 1 there, 3 above."""
    scheduler, asked = model.make_scheduler("ddim"), []
    scheduler.alphas_cumprod = torch.zeros(1000).index_fill(0, torch.tensor(499), 0.64)

    def v(transformer: Any, latents: torch.Tensor, condition: Condition, t: torch.Tensor, guidance: float) -> Any:
        asked.append((t.item(), round(latents.mean().item(), 4), guidance))
        return torch.full_like(latents, 1.0 if t == 499 else 3.0)

    monkeypatch.setattr(ddim_inversion, "guided_v", v)
    x0 = torch.full(model.latent_shape(FRAMES, HEIGHT, WIDTH), 2.0)
    noise = invert(model.load_transformer("float32", "cpu"), scheduler, condition(model), x0, steps=2)
    assert asked == [(499, 2.0, 1.0), (999, 2.2, 1.0)]  # 0.8 * 2 + 0.6 * 1
    torch.testing.assert_close(noise, torch.full_like(x0, 3.72))  # eps_hat = 0.6 * 2.2 + 0.8 * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_inverse_scheduler_of_diffusers(tmp_path: Path, family: str) -> None:
    model = open_model(tiny_pipeline(tmp_path / "model", perturb=0.3, **FAMILIES[family]))
    transformer, given, x0 = model.load_transformer("float32", "cpu"), condition(model), clean(model)
    scheduler = model.make_scheduler("ddim")
    theirs = DDIMInverseScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)
    theirs.alphas_cumprod = scheduler.alphas_cumprod  # it has no snr_shift_scale
    theirs.set_timesteps(10)
    padded = front_padding(model.transformer_config, len(x0))
    clip = torch.cat([x0[:1]] * padded + [x0])
    expected, image = clip[None], None if given.image_latent is None else given.image_latent[None]
    with torch.no_grad():
        for t in theirs.timesteps:
            v = predict_v(transformer, expected, image, t[None], given.prompt_embeds[None])
            expected = theirs.step(v, int(t), expected).prev_sample  # type: ignore[union-attr]
    ours = invert(transformer, scheduler, given, x0, steps=10)
    assert (expected[0] - clip).abs().max() > 0.5
    torch.testing.assert_close(ours, expected[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reconstruction_error_shrinks_with_the_step_size(tmp_path: Path, family: str) -> None:
    model = open_model(tiny_pipeline(tmp_path / "model", perturb=0.3, **FAMILIES[family]))
    transformer, given, x0 = model.load_transformer("float32", "cpu"), condition(model), clean(model)
    errors = []
    for steps in (20, 200):
        scheduler = model.make_scheduler("ddim")
        noise = invert(transformer, scheduler, given, x0, steps=steps)
        back = denoise(transformer, scheduler, given, (1, 2), tuple(x0.shape), SamplerConfig(steps=steps), noise)  # type: ignore[arg-type]
        assert torch.allclose(back[0], back[1], atol=1e-5)  # whatever the seeds
        errors.append((back[0] - x0).square().mean().sqrt().item())
    assert errors[1] < 0.05 * x0.std()
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.5)


def clip_at(place: Path) -> Path:
    place.write_bytes(encode_mp4(frames(1, FRAMES), 8))
    return place


def sampler_config(model: ModelFolder, **flags: str) -> Any:
    return load_config(None, {"model.path": str(model.path), "sampler.scheduler": "ddim", **flags})


def test_under_its_own_condition_the_sampler_gives_the_clip_back(model: ModelFolder, tmp_path: Path) -> None:
    clip = clip_at(tmp_path / "walk.mp4")
    sampler = InvertedSampler(model, sampler_config(model, **{"sampler.steps": "200"}), clip)
    pixels = decode_clip(clip.read_bytes())
    own = sampler.encode(Prompt(0, "own", "", encode_png(pixels[0])))
    (made,) = sampler.sample(Prompt(0, "own", ""), own, [5], [0])
    x0 = sampler.latents_of(pixels)
    assert (from_array(made.latents) - x0).square().mean().sqrt() < 0.05 * x0.std()


def test_other_weights_have_other_noise(model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = InvertedSampler(model, sampler_config(model), clip_at(tmp_path / "walk.mp4"))
    before = sampler.fixed_noise()
    assert sampler.fixed_noise() is before
    monkeypatch.setattr("actors.sampler.Sampler.load", lambda self, version, state: None)
    with torch.no_grad():
        for weight in sampler._transformer.parameters():
            weight.mul_(1.1)
    sampler.load(None, {})  # type: ignore[arg-type]
    assert (sampler.fixed_noise() - before).abs().max() > 0.01


def test_invalid_input_is_refused(model: ModelFolder, tmp_path: Path) -> None:
    clip = clip_at(tmp_path / "walk.mp4")
    with pytest.raises(ConfigError, match="scheduler = 'dpm': from inverted noise only 'ddim' follows"):
        InvertedSampler(model, sampler_config(model, **{"sampler.scheduler": "dpm"}), clip)
    with pytest.raises(ConfigError, match=r"walk\.mp4: 9 frames at 8 frames per second are too few"):
        InvertedSampler(model, sampler_config(model, **{"model.frames": "17"}), clip)
    with pytest.raises(ConfigError, match=r"gone\.mp4"):
        InvertedSampler(model, sampler_config(model), tmp_path / "gone.mp4")


def test_the_command(model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ModelConfig()
    assert (size.frames, size.height, size.width) == (FRAMES, HEIGHT, WIDTH)
    for name, pixels in (("one", frames(2, 1)[0]), ("two", frames(3, 1)[0])):
        Path(f"{name}.png").write_bytes(encode_png(pixels))
    rows = ({"image": "one.png", "prompt": "a robot"}, {"image": "two.png", "prompt": "a zombie"})
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clip_at(Path("walk.mp4"))

    def sampled(out: str, *more: str) -> list[np.ndarray]:
        arguments = ["sample", str(model.path), "--prompts", "p.jsonl", "--count", "2", "--out", out, *more]
        assert main(arguments) == 0
        records = json.loads(Path(out, "samples.json").read_text())
        return [decode_clip(Path(out, record["clip"]).read_bytes()) for record in records]

    made, again = sampled("a", "--invert", "walk.mp4"), sampled("b", "--invert", "walk.mp4")
    other = sampled("c", "--sampler.scheduler", "ddim")
    for one, same, drawn in zip(made, again, other, strict=True):
        assert np.array_equal(one, same)
        assert not np.array_equal(one, drawn)
    assert not np.array_equal(made[0], made[1])
    assert main(["sample", str(model.path), "--invert", "walk.mp4", "--sampler.scheduler", "dpm"]) == 2
