"""The denoising loop: N candidates of one prompt, each from its own seed, with diffusers' modules.

diffusers' `CogVideoXImageToVideoPipeline` (`CogVideoXPipeline` for text-to-video) is the reference: with the same
seeds, steps and guidance both give the same latents. Intended differences:

- One prompt, N seeds: the pipeline would encode the prompt and the image N times.
- The image latent is the posterior's *mode*, shared by all candidates and by the learner's loss. The pipeline samples
  the posterior with each candidate's generator before it draws the initial noise. Here that draw is made and discarded,
  so that all later draws are equal.
- An image of another aspect ratio than the clip is cropped (`common/images.py`). The pipeline squeezes it.
- Noise is drawn on the CPU, so a seed gives the same noise on every device.

Each candidate has its own generator for all noise (the DPM scheduler draws at every step), so its clip does not depend
on the micro-batch or on its neighbours in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler

from actors.acceleration import reset_cache
from common.config import SamplerConfig
from common.models.cogvideox import Scheduler, predict_v
from common.models.guidance import guided, scale_at
from common.models.shapes import front_padding


@dataclass(frozen=True)
class Condition:
    """The conditioning of one prompt's candidates, as tensors on the model's device."""

    prompt_embeds: torch.Tensor  # [L, D]
    image_latent: torch.Tensor | None  # [1, C, h, w]; None for text-to-video models
    empty_embeds: torch.Tensor | None = None  # [L, D] of the empty caption; needed if guidance > 1


@torch.inference_mode()
def denoise(
    transformer: Any,
    scheduler: Scheduler,
    condition: Condition,
    seeds: Sequence[int],
    shape: tuple[int, int, int, int],
    settings: SamplerConfig,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Denoise one latent clip per seed.

    Classifier-free guidance: v = v_empty + scale (v_text - v_empty), with the image condition in both. At scale 1 the
    empty caption is not evaluated.

    Args:
        shape: (F, C, h, w) of a clip. CogVideoX 1.5's front padding is added, denoised too, and removed at the end.
        settings: the number of steps, and the guidance scale of each (`scale_at`).
        noise: initial noise [F + padding, C, h, w] for all clips, instead of noise drawn from their seeds.

    Returns:
        x0 latents [len(seeds), F, C, h, w] as the scheduler leaves them, in the transformer's dtype.
    """
    reset_cache(transformer)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    padding = front_padding(transformer.config, shape[0])
    padded = (shape[0] + padding, *shape[1:])
    if noise is None:
        latents = _initial_noise(generators, padded, transformer, condition)
    else:
        latents = noise.expand(len(seeds), *padded)
    latents = latents * scheduler.init_noise_sigma
    scheduler.set_timesteps(settings.steps, device=latents.device)
    x0, previous = None, None
    for t in scheduler.timesteps:
        scale = scale_at(settings, int(t), scheduler.config["num_train_timesteps"])
        v = guided_v(transformer, latents, condition, t, scale)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            stepped, x0 = scheduler.step(v, x0, t, previous, latents, generator=generators, return_dict=False)  # type: ignore[arg-type]
        else:
            stepped = scheduler.step(v, t, latents, generator=generators, return_dict=False)[0]  # type: ignore[arg-type]
        latents, previous = stepped.to(latents.dtype), t
    return latents[:, padding:]


def guided_v(
    transformer: Any, latents: torch.Tensor, condition: Condition, timestep: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Predict v of `latents` [B, F, C, h, w] at one timestep with classifier-free guidance, in one model call.

    Returns:
        v [B, F, C, h, w] in float32.
    """
    count = latents.shape[0]
    captions = [condition.prompt_embeds]
    if guidance > 1:
        if condition.empty_embeds is None:
            raise ValueError(f"guidance {guidance} needs the embedding of the empty caption")
        captions = [condition.empty_embeds, condition.prompt_embeds]
    embeds = torch.cat([caption.expand(count, -1, -1) for caption in captions])
    image = condition.image_latent
    if image is not None:
        image = image.expand(count * len(captions), -1, -1, -1, -1)
    inputs = torch.cat([latents] * len(captions))
    with transformer.cache_context(f"{len(captions)} captions"):  # separate block caches with and without guidance
        v = predict_v(transformer, inputs, image, timestep.expand(len(inputs)), embeds).float()
    return guided(v, guidance) if guidance > 1 else v


def _initial_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], transformer: Any, condition: Condition
) -> torch.Tensor:
    """Noise [B, F, C, h, w], one clip per generator, drawn in the same order as in the diffusers pipeline."""
    _, channels, height, width = shape
    clips = []
    for generator in generators:
        if condition.image_latent is not None:  # the pipeline samples the image's posterior here
            torch.randn((1, channels, 1, height, width), generator=generator, dtype=transformer.dtype)
        clips.append(torch.randn((1, *shape), generator=generator, dtype=transformer.dtype))
    return torch.cat(clips).to(transformer.device)
