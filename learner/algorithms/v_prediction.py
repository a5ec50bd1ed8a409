"""The v errors that the losses use, and their random draws. All candidates of a group share one draw, and so do policy
and reference.

The error has no deviation from the papers. CogVideoX 1.5 needs padding in front (`pad_front`). As in its trainer, the
padding has its own noise; deviation: the trainer's mean includes the error of the padding, which no clip shows.
`image_noise` (off by default) adds noise to the *latent* of the first frame, because the learner has no VAE; the
models' trainers add it to the pixels.

| symbol | here | meaning |
|---|---|---|
| x0 | `Batch.latents` [n, k, F, C, h, w] | latents of the kept candidates |
| t | `Draw.timesteps` [n] | 0 .. T-1, one per group |
| p | `front_padding` | latent frames that CogVideoX 1.5 needs in front; 0 for the other families |
| eps | `Draw.noise` [n, p + F, C, h, w] | one per group, float32 |
| c | `Batch.prompt_embeds`, `.image_latent` | caption and clean first frame, per group or per candidate |
| v* | `NoiseSchedule.v_target` | sqrt(a_t) eps - sqrt(1 - a_t) x0 |
| e_theta(x0) | `v_errors` [n, k] | mean over F, C, h, w of (v_theta(x_t, t, c) - v*)^2, float32 |

All draws are functions of the run seed, the step, the group's ordinal and the ordinals of the global batch. They do not
depend on ranks or micro-batches, so a step that is repeated after a resume uses the same draws, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from common.config import LearnerConfig
from common.models.cogvideox import pad_front
from common.models.noise_schedule import NoiseSchedule
from learner.batch import Batch

IMAGE_NOISE_LOG_MEAN, IMAGE_NOISE_LOG_STD = -3.0, 0.5  # sigma = exp(N(-3, 0.5)), as in the training of CogVideoX I2V

# (x_t [B, p + F, C, h, w], image latent [B, 1, C, h, w] or None, t [B], prompt embeddings [B, L, D]) -> v like x_t
Predict = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """Random draws for n groups."""

    timesteps: torch.Tensor  # int64 [n]
    noise: torch.Tensor  # float32 [n, p + F, C, h, w]
    drop_caption: torch.Tensor  # bool [n]: train on the empty caption
    drop_image: torch.Tensor  # bool [n]: train on a zero image latent
    image_noise: torch.Tensor  # float32 [n, 1, C, h, w], added to the image latent; zero when the option is off

    def to(self, device: torch.device | str) -> Draw:
        """A copy on another device."""
        return Draw(
            self.timesteps.to(device),
            self.noise.to(device),
            self.drop_caption.to(device),
            self.drop_image.to(device),
            self.image_noise.to(device),
        )


def draw(
    seed: int,
    step: int,
    ordinals: Sequence[int],
    config: LearnerConfig,
    batch: Batch,
    *,
    steps: int,
    padding: int,
) -> Draw:
    """The draws for `batch`, a part of the global batch `ordinals` of optimizer step `step`.

    `steps` is T, and `padding` is p, the number of latent frames that `v_errors` puts in front of each clip.

    Timesteps are stratified: 0 .. T-1 is split into one interval per group of the global batch, and the groups draw one
    t from each, in random order.
    """
    strata = stratified_timesteps(seed, step, ordinals, steps)
    rows = [_draw_one(seed, step, ordinal, config, batch, padding) for ordinal in batch.ordinals]
    noise, image_noise, drops = zip(*rows, strict=True)
    dropped = torch.stack(drops)
    timesteps = torch.tensor([strata[ordinal] for ordinal in batch.ordinals])
    return Draw(timesteps, torch.stack(noise), dropped[:, 0], dropped[:, 1], torch.stack(image_noise))


def stratified_timesteps(seed: int, step: int, ordinals: Sequence[int], steps: int) -> dict[int, int]:
    """One t in 0 .. steps-1 per ordinal: floor(steps (stratum + u) / n), with random stratum and u in [0, 1)."""
    count = len(ordinals)
    order = torch.randperm(count, generator=_generator(seed, step, "strata")).tolist()
    jitter = [torch.rand((), generator=_generator(seed, step, "t", o), dtype=torch.float64).item() for o in ordinals]
    drawn = [math.floor(steps * (s + u) / count) for s, u in zip(order, jitter, strict=True)]
    return {ordinal: min(t, steps - 1) for ordinal, t in zip(ordinals, drawn, strict=True)}


def _draw_one(
    seed: int, step: int, ordinal: int, config: LearnerConfig, batch: Batch, padding: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frames, *shape = batch.latents.shape[2:]
    noise = torch.randn(padding + frames, *shape, generator=_generator(seed, step, "noise", ordinal))
    drops = torch.rand(2, generator=_generator(seed, step, "drop", ordinal))
    image_noise = torch.zeros(1, *shape)
    if config.image_noise:
        generator = _generator(seed, step, "image", ordinal)
        log_sigma = IMAGE_NOISE_LOG_MEAN + IMAGE_NOISE_LOG_STD * torch.randn((), generator=generator)
        image_noise = log_sigma.exp() * torch.randn(image_noise.shape, generator=generator)
    return noise, image_noise, drops < torch.tensor([config.caption_drop, config.image_drop])


def _generator(*parts: int | str) -> torch.Generator:
    """A generator seeded with a digest of `parts`. It is on the CPU, so that the draws do not depend on the device."""
    digest = blake2b("|".join(map(str, parts)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def v_errors(
    predict: Predict, schedule: NoiseSchedule, batch: Batch, draw: Draw, empty_embeds: torch.Tensor | None
) -> torch.Tensor:
    """The v errors of all selected candidates, float32 [n, k], from one forward pass with a shared `draw`.

    `empty_embeds` [L, D] is the embedding of the empty caption. Raises `ValueError` if it is None although the draw
    drops captions.
    """
    kept, frames = batch.latents.shape[1:3]
    padding = draw.noise.shape[1] - frames
    clips = torch.cat(list(batch.latents.unbind(1)))  # all first candidates, then all second ones: [k n, F, C, h, w]
    x0 = pad_front(clips, padding)
    noise, timesteps = torch.cat([draw.noise] * kept), torch.cat([draw.timesteps] * kept)
    text, image = _condition(batch, draw, empty_embeds)
    x_t = schedule.add_noise(x0, noise, timesteps)
    v = predict(x_t, None if image is None else _each(image, 5, kept), timesteps, _each(text, 3, kept))
    squares = (v.float() - schedule.v_target(x0, noise, timesteps)).square()
    errors = squares[:, padding:].flatten(1).mean(1)
    return torch.stack(errors.chunk(kept), 1)


def _condition(batch: Batch, draw: Draw, empty_embeds: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt embeddings and image latent after condition dropout and the optional noise."""
    text, image = batch.prompt_embeds, batch.image_latent
    if draw.drop_caption.any():
        if empty_embeds is None:
            raise ValueError("the draw drops captions, but the learner has no embedding of the empty caption")
        text = torch.where(_over(draw.drop_caption, text), empty_embeds.to(text), text)
    if image is not None:
        noise = draw.image_noise if image.ndim == 5 else draw.image_noise[:, None]
        image = (image.float() + noise) * _over(~draw.drop_image, image)
    return text, image


def _over(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Reshape flags [n] so that they broadcast over `values` [n, ...]."""
    return flags.view(-1, *[1] * (values.ndim - 1))


def _each(condition: torch.Tensor, shared: int, kept: int) -> torch.Tensor:
    """Expand a condition to [k n, ...]: per group (it has `shared` dimensions) or per candidate [n, k, ...]."""
    return torch.cat([condition] * kept if condition.ndim == shared else list(condition.unbind(1)))
