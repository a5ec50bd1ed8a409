"""The three CogVideoX families against diffusers: sampling against the whole pipeline, training against its model call.

```
same folder ──┬── diffusers' pipeline ── latents ──────────────────────── equal? ── ours: Sampler
              └──── every call of its transformer: (x_t, t, c) ─> v ───── equal? ── ours: v_errors over predict_v
```

Every mutation of what makes a family must break the comparison that it belongs to.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors import denoise
from actors.sampler import Sampler
from common.config import load_config
from common.messages import Conditioning, Prompt
from common.models import cogvideox, guidance
from common.models.cogvideox import ModelFolder, decode_latents, open_model, predict_v
from common.models.noise_schedule import NoiseSchedule
from common.models.shapes import front_padding
from common.weights.tensors import from_array
from learner.algorithms import v_prediction
from learner.algorithms.v_prediction import Draw, v_errors
from learner.batch import Batch
from learner.learner import without_dropout
from tests.support.reference import open_pipeline, pipeline_latents
from tests.support.tiny import CHANNELS, FAMILIES, HEIGHT, WIDTH, tiny_pipeline

SEEDS = (21, 22)
STEPS, GUIDANCE = 4, 6.0
TEXT = "a zombie jumps left"
TOLERANCE = 1e-4
PIXELS = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Call:
    """One call that the pipeline made of its transformer."""

    x_t: torch.Tensor  # [1, F + padding, C, h, w]
    timestep: torch.Tensor  # int64 [1]
    v: torch.Tensor  # as x_t


class Family:
    """A tiny model folder, and what diffusers makes of it, computed once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.model = open_model(tiny_pipeline(folder, perturb=0.2, **FAMILIES[name]))
        self.image = PIXELS if self.model.image_conditioned else None
        self._latents: dict[str, torch.Tensor] = {}

    @cached_property
    def pipe(self) -> Any:
        return open_pipeline(self.model.path)

    def latents(self, kind: str) -> torch.Tensor:
        """The pipeline's x0 of SEEDS."""
        if kind not in self._latents:
            arguments: dict[str, Any] = {"kind": kind, "steps": STEPS, "guidance": GUIDANCE}
            self._latents[kind] = pipeline_latents(self.pipe, self.image, TEXT, SEEDS, **arguments)
        return self._latents[kind]

    @cached_property
    def calls(self) -> list[Call]:
        """The transformer's calls while the pipeline makes one clip without guidance."""
        found: list[Call] = []

        def after(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
            found.append(Call(kwargs["hidden_states"][:, :, :CHANNELS].clone(), kwargs["timestep"], outputs[0].clone()))

        with self.pipe.transformer.register_forward_hook(after, with_kwargs=True):
            pipeline_latents(self.pipe, self.image, TEXT, SEEDS[:1], steps=STEPS)
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp("family"))


@pytest.fixture
def fresh_tables() -> Iterator[None]:
    """No rotary table of another test, and none left for one."""
    cogvideox._rotary.cache_clear()
    yield
    cogvideox._rotary.cache_clear()


# Our side.


def sampler_of(model: ModelFolder, kind: str = "dpm", **more: str) -> Sampler:
    flags = {"sampler.steps": STEPS, "sampler.guidance": GUIDANCE, "sampler.scheduler": kind}
    return Sampler(model, load_config(flags=flags | more))


def condition(sampler: Sampler, family: Family) -> tuple[Prompt, Conditioning]:
    png = io.BytesIO()
    Image.fromarray(PIXELS).save(png, "PNG")
    prompt = Prompt(0, "p", TEXT, None if family.image is None else png.getvalue())
    return prompt, sampler.encode(prompt)


def sampled(sampler: Sampler, family: Family) -> torch.Tensor:
    prompt, conditioning = condition(sampler, family)
    group = sampler.sample(prompt, conditioning, SEEDS, range(len(SEEDS)))
    return torch.stack([from_array(candidate.latents) for candidate in group])


def check_sampling(sampler: Sampler, family: Family, kind: str = "dpm") -> None:
    torch.testing.assert_close(sampled(sampler, family), family.latents(kind), atol=TOLERANCE, rtol=0)


def pairs_of(sampler: Sampler, family: Family) -> Batch:
    """A pair for every call of the pipeline: random clips, conditioned as the sampler does it."""
    _, conditioning = condition(sampler, family)
    count, image = len(family.calls), conditioning.image_latent
    shape = family.latents("dpm").shape[1:]
    latents = torch.randn(2, count, *shape, generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    ones = torch.ones(count, 2)
    text = from_array(conditioning.prompt_embeds).expand(count, -1, -1)
    first = None if image is None else from_array(image).expand(count, -1, -1, -1, -1)
    return Batch(tuple(range(count)), latents, text, first, ones, ones, torch.zeros(count))


def check_training(sampler: Sampler, family: Family) -> None:
    """e(w) of our training call equals that of the pipeline's own v, by diffusers' own schedule.

    The noise is chosen so that the chosen clip's x_t is what the pipeline's transformer was given. The padding of
    CogVideoX 1.5 is the pipeline's own, and belongs to no clip.
    """
    pairs, padding = pairs_of(sampler, family), front_padding(family.model.transformer_config, 3)
    timesteps = torch.cat([call.timestep for call in family.calls])
    x_t, theirs = (torch.cat([getattr(call, name) for call in family.calls]) for name in ("x_t", "v"))
    scheduler = family.pipe.scheduler
    alphas = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1, 1)
    chosen = torch.cat([pairs.latents[:, 0, :1]] * padding + [pairs.latents[:, 0]], 1)
    noise = ((x_t - alphas.sqrt() * chosen) / (1 - alphas).sqrt()).float()
    no = torch.zeros(len(timesteps), dtype=torch.bool)
    drawn = Draw(timesteps, noise, no, no, torch.zeros(len(no), 2, 1, *x_t.shape[2:]))
    transformer = without_dropout(family.model.load_transformer("float32", "cpu"))
    schedule = NoiseSchedule.from_config(sampler._model.scheduler_config)
    errors = v_errors(partial(predict_v, transformer), schedule, pairs, drawn, None)
    expected = (theirs - scheduler.get_velocity(chosen, noise, timesteps))[:, padding:].square().mean((1, 2, 3, 4))
    torch.testing.assert_close(errors[:, 0], expected, atol=TOLERANCE, rtol=TOLERANCE)


# Parity.


@pytest.mark.parametrize("kind", ["dpm", "ddim"])
def test_the_sampler_makes_the_pipelines_latents(family: Family, kind: str) -> None:
    assert family.latents(kind).std() > 0.1
    check_sampling(sampler_of(family.model, kind), family, kind)


@pytest.mark.parametrize("kind", ["dpm", "ddim"])
def test_dynamic_guidance_is_the_pipelines(family: Family, kind: str) -> None:
    """The scale of every step is equal, bit for bit, and so are the latents.

    Except for image-to-video, where the pipeline samples the image's posterior, of width 3e-7, and we take its mode.
    """
    scales: list[float] = []

    def note(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        scales.append(pipe.guidance_scale)
        return tensors

    more: dict[str, Any] = {"use_dynamic_cfg": True, "callback_on_step_end": note}
    how: dict[str, Any] = {"kind": kind, "steps": STEPS, "guidance": GUIDANCE}
    theirs = pipeline_latents(family.pipe, family.image, TEXT, SEEDS, **how, **more)
    assert [guidance.dynamic_scale(GUIDANCE, t, STEPS) for t in (999, 749, 499, 249)] == scales
    assert max(scales) - min(scales) > 1
    ours = sampled(sampler_of(family.model, kind, **{"sampler.dynamic_guidance": "on"}), family)
    torch.testing.assert_close(ours, theirs, atol=0 if family.image is None else 1e-5, rtol=0)
    assert (ours - family.latents(kind)).abs().max() > 10 * TOLERANCE


def test_latents_become_the_pipelines_frames(family: Family) -> None:
    latents = family.latents("dpm")
    with torch.no_grad():
        theirs = family.pipe.decode_latents(latents).transpose(1, 2)
        ours = decode_latents(family.model.load_vae("float32", "cpu"), latents)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_the_training_call_makes_the_pipelines_errors(family: Family) -> None:
    assert [call.timestep.item() for call in family.calls] == [999, 749, 499, 249]
    check_training(sampler_of(family.model), family)


# Mutations: what a family is, undone. Each names the families it is made for.


def other_image_scale(sampler: Any, patch: pytest.MonkeyPatch) -> None:
    inverted = sampler._vae.config["invert_scale_latents"]
    sampler._vae.register_to_config(invert_scale_latents=not inverted)


def other_ofs(sampler: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cogvideox, "OFS", 0.0)


def other_padding(sampler: Any, patch: pytest.MonkeyPatch) -> None:
    """Sampling with three frames in front, training with copies of the last frame."""
    patch.setattr(denoise, "front_padding", lambda config, frames: front_padding(config, frames) and 3)
    patch.setattr(v_prediction, "pad_front", lambda x0, padding: torch.cat([x0[:, -1:]] * padding + [x0], 1))


def turned_grid(sampler: Any, patch: pytest.MonkeyPatch) -> None:
    own = cogvideox.rotary_table
    patch.setattr(cogvideox, "rotary_table", lambda c, s, device: own(c, (s[0], s[1], s[3], s[2]), device))


def stretched_grid(sampler: Any, patch: pytest.MonkeyPatch) -> None:
    """The rotary grid of 1.0: laid over the sample size, not cut out of it."""
    own = cogvideox.get_3d_rotary_pos_embed

    def table(head: int, crop: Any, grid: Any, frames: int, *, max_size: Any, device: Any, **how: Any) -> Any:
        region = cogvideox.get_resize_crop_region_for_grid(grid, max_size[1], max_size[0])
        return own(head, region, grid, frames, grid_type="linspace", device=device)

    patch.setattr(cogvideox, "get_3d_rotary_pos_embed", table)


def no_positions(sampler: Any, patch: pytest.MonkeyPatch) -> None:
    load = ModelFolder.load_transformer

    def without(*arguments: Any) -> Any:
        transformer: Any = load(*arguments)
        transformer.patch_embed.pos_embedding.zero_()
        return transformer

    patch.setattr(ModelFolder, "load_transformer", without)
    sampler._transformer.patch_embed.pos_embedding.zero_()


Mutation = Callable[[Any, pytest.MonkeyPatch], None]
MUTATIONS: list[tuple[str, Mutation]] = [
    ("2B", no_positions),
    ("5B-I2V", no_positions),
    ("5B-I2V", turned_grid),
    ("5B-I2V", other_image_scale),
    ("1.5-5B-I2V", turned_grid),
    ("1.5-5B-I2V", stretched_grid),
    ("1.5-5B-I2V", other_image_scale),
    ("1.5-5B-I2V", other_ofs),
    ("1.5-5B-I2V", other_padding),
]


@pytest.mark.parametrize(("family", "mutation"), MUTATIONS, indirect=["family"])
@pytest.mark.parametrize("check", [check_sampling, check_training])
def test_a_mutation_breaks_parity(
    family: Family, mutation: Mutation, check: Any, monkeypatch: pytest.MonkeyPatch, fresh_tables: None
) -> None:
    assert len(family.latents("dpm")) == len(SEEDS)  # diffusers' side is made before the mutation
    assert len(family.calls) == STEPS
    sampler = sampler_of(family.model)
    mutation(sampler, monkeypatch)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(sampler, family)


@pytest.mark.parametrize("check", [check_sampling, check_training])
def test_another_snr_shift_breaks_parity(family: Family, check: Any) -> None:
    own = family.model.scheduler_config
    config = own | {"snr_shift_scale": 4.0 - own["snr_shift_scale"]}  # 3.0 of 2B for 1.0 of 5B, and back
    sampler = sampler_of(replace(family.model, scheduler_config=config))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(sampler, family)
