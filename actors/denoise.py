"""The denoising loop: N candidates of one prompt, each from its own seed, over diffusers' modules.

diffusers' `CogVideoXImageToVideoPipeline` (`CogVideoXPipeline` for text-to-video) is the parity reference: with the
same seeds, steps and guidance both give the same latents. What differs, on purpose:

- One prompt, N seeds: the pipeline would encode the prompt and the image N times.
- The image latent is the posterior's *mode*, shared by all candidates and by the learner's loss. The pipeline draws a
  sample of the posterior with each candidate's generator, before the initial noise; that draw is made and dropped
  here, so that everything drawn after it is equal.
- Guidance is one constant for all steps; there is no dynamic guidance.
- Noise is drawn on the CPU whatever the device, so a seed means the same noise everywhere.

A candidate's noise comes from its own generator alone (the DPM scheduler draws at every step), so neither the
micro-batch nor the neighbours in it decide what a seed gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler

from actors.acceleration import reset_cache
from common.models.cogvideox import Scheduler, predict_v
from common.models.shapes import front_padding


@dataclass(frozen=True)
class Condition:
    """What one prompt's candidates are conditioned on, as tensors on the model's device."""

    prompt_embeds: torch.Tensor  # [L, D]
    image_latent: torch.Tensor | None  # [1, C, h, w]; None for text-to-video models
    empty_embeds: torch.Tensor | None = None  # [L, D] of the empty caption; needed where guidance > 1


@torch.inference_mode()
def denoise(
    transformer: Any,
    scheduler: Scheduler,
    condition: Condition,
    seeds: Sequence[int],
    shape: tuple[int, int, int, int],
    *,
    steps: int,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """x0 latents [len(seeds), F, C, h, w] as the scheduler leaves them, in the transformer's dtype, for `shape`
    (F, C, h, w). The front padding of CogVideoX 1.5 is denoised along and cut off at the end.

    `start` (`shape`) is noise that all begin from instead of their seeds'; the model call then makes the padding.

    Guidance: v = v_empty + guidance (v_text - v_empty), the image kept in both; 1 leaves the empty caption out, and so
    does a timestep t whose t / T is outside of `interval`.
    """
    reset_cache(transformer)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    padding = front_padding(transformer.config, shape[0]) if start is None else 0
    latents = (
        _initial_noise(generators, (shape[0] + padding, *shape[1:]), transformer, condition)
        if start is None
        else start.expand(len(seeds), *shape)
    )
    latents = latents * scheduler.init_noise_sigma
    scheduler.set_timesteps(steps, device=latents.device)
    x0, previous = None, None
    for t in scheduler.timesteps:
        inside = interval[0] <= t / scheduler.config["num_train_timesteps"] <= interval[1]
        v = guided_v(transformer, latents, condition, t, guidance if inside else 1.0)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            stepped, x0 = scheduler.step(v, x0, t, previous, latents, generator=generators, return_dict=False)  # type: ignore[arg-type]
        else:
            stepped = scheduler.step(v, t, latents, generator=generators, return_dict=False)[0]  # type: ignore[arg-type]
        latents, previous = stepped.to(latents.dtype), t
    return latents[:, padding:]


def guided_v(
    transformer: Any, latents: torch.Tensor, condition: Condition, timestep: torch.Tensor, guidance: float
) -> torch.Tensor:
    """v [B, F, C, h, w] in float32 of `latents` [B, F, C, h, w] at one timestep, both captions in one call."""
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
    with transformer.cache_context(f"{len(captions)} captions"):  # what is cached of two says nothing about one
        v = predict_v(transformer, inputs, image, timestep.expand(len(inputs)), embeds).float()
    if guidance > 1:
        empty, text = v.chunk(2)
        v = empty + guidance * (text - empty)
    return v


def _initial_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], transformer: Any, condition: Condition
) -> torch.Tensor:
    """Noise [B, F, C, h, w], a clip from each generator, in the order in which the pipeline draws."""
    _, channels, height, width = shape
    clips = []
    for generator in generators:
        if condition.image_latent is not None:  # the pipeline's sample of the image's posterior
            torch.randn((1, channels, 1, height, width), generator=generator, dtype=transformer.dtype)
        clips.append(torch.randn((1, *shape), generator=generator, dtype=transformer.dtype))
    return torch.cat(clips).to(transformer.device)
