"""The v errors that the losses use, and their random draws. All candidates of a group share timestep, noise and drops;
policy and reference share everything.

Deviations from the papers (GAPO, equations 1 and 4; HuViDPO): a mean v error in the place of a summed noise error; the
clips of a pair share their noise, as in HuViDPO's code; and the timesteps of a batch are stratified. Sharing and strata
lower the variance of a pair's difference and of a step.

CogVideoX 1.5 needs padding in front (`pad_front`). As in its trainer, the padding has its own noise; deviation: the
trainer's mean includes the error of the padding, which no clip shows.

`learner.image_noise`, `.caption_drop` and `.image_drop` are off by default, as no paper mentions them. The published
code of the GAPO authors (`anisora_rl` in the repository bilibili/Index-anisora) has all three, with drops of 0.1 and
0.05 in its configuration:

    image = factor (z + sigma eps'),  sigma = exp(N(-3, 0.5)),  z the first frame's latent before the VAE's factor

Sigma and eps' are drawn for each clip, and policy and reference share them. Deviations:
1. z encodes the first frame that the clip was sampled from. The authors take the first latent frame of the clip itself.
2. An image is dropped per group. The authors drop the images of a whole micro-batch (of one pair) at once.

CogVideoX's own trainers add noise of the same sigma to the pixels instead.

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

IMAGE_NOISE_LOG_MEAN, IMAGE_NOISE_LOG_STD = -3.0, 0.5  # of log sigma

# (x_t [B, p + F, C, h, w], image latent [B, 1, C, h, w] or None, t [B], prompt embeddings [B, L, D]) -> v like x_t
Predict = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """Random draws for n groups."""

    timesteps: torch.Tensor  # int64 [n]
    noise: torch.Tensor  # float32 [n, p + F, C, h, w]
    drop_caption: torch.Tensor  # bool [n]: train on the empty caption
    drop_image: torch.Tensor  # bool [n]: train on a zero image latent
    image_noise: torch.Tensor  # float32 [n, k, 1, C, h, w], added to the scaled image latent; 0 if the option is off

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
    image_scale: float,
) -> Draw:
    """The draws for `batch`, a part of the global batch `ordinals` of optimizer step `step`.

    Timesteps are stratified: 0 .. T-1 is split into one interval per group of the global batch, and the groups draw one
    t from each, in random order.

    Args:
        steps: T.
        padding: p, the latent frames that `v_errors` puts in front of each clip.
        image_scale: the factor of image latents (`image_factor`).
    """
    strata = stratified_timesteps(seed, step, ordinals, steps)
    _, kept, frames, *frame = batch.latents.shape
    noise = [
        torch.randn(padding + frames, *frame, generator=generator(seed, step, "noise", ordinal))
        for ordinal in batch.ordinals
    ]
    chances = torch.stack([torch.rand(2, generator=generator(seed, step, "drop", one)) for one in batch.ordinals])
    image_noise = torch.zeros(len(batch), kept, 1, *frame)
    if config.image_noise:
        for row, ordinal in zip(image_noise, batch.ordinals, strict=True):
            row.copy_(image_scale * _image_noise(generator(seed, step, "image", ordinal), row.shape))
    timesteps = torch.tensor([strata[ordinal] for ordinal in batch.ordinals])
    drop_caption, drop_image = chances[:, 0] < config.caption_drop, chances[:, 1] < config.image_drop
    return Draw(timesteps, torch.stack(noise), drop_caption, drop_image, image_noise)


def stratified_timesteps(seed: int, step: int, ordinals: Sequence[int], steps: int) -> dict[int, int]:
    """One t in 0 .. steps-1 per ordinal: floor(steps (stratum + u) / n), with random stratum and u in [0, 1)."""
    count = len(ordinals)
    order = torch.randperm(count, generator=generator(seed, step, "strata")).tolist()
    jitter = [torch.rand((), generator=generator(seed, step, "t", o), dtype=torch.float64).item() for o in ordinals]
    drawn = [math.floor(steps * (s + u) / count) for s, u in zip(order, jitter, strict=True)]
    return {ordinal: min(t, steps - 1) for ordinal, t in zip(ordinals, drawn, strict=True)}


def _image_noise(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    """sigma eps' [k, 1, C, h, w], with a sigma of its own for each of the k candidates."""
    log_sigma = IMAGE_NOISE_LOG_MEAN + IMAGE_NOISE_LOG_STD * torch.randn(shape[0], generator=generator)
    return log_sigma.exp().view(-1, 1, 1, 1, 1) * torch.randn(shape, generator=generator)


def generator(*parts: int | str) -> torch.Generator:
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
    images = None if image is None else torch.cat(list(image.unbind(1)))
    v = predict(x_t, images, timesteps, _each_caption(text, kept))
    squares = (v.float() - schedule.v_target(x0, noise, timesteps)).square()
    errors = squares[:, padding:].flatten(1).mean(1)
    return torch.stack(errors.chunk(kept), 1)


def _condition(batch: Batch, draw: Draw, empty_embeds: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt embeddings, and image latents [n, k, 1, C, h, w] with their noise, after condition dropout."""
    text, image = batch.prompt_embeds, batch.image_latent
    if draw.drop_caption.any():
        if empty_embeds is None:
            raise ValueError("the draw drops captions, but the learner has no embedding of the empty caption")
        text = torch.where(_over(draw.drop_caption, text), empty_embeds.to(text), text)
    if image is not None:
        noisy = (image if image.ndim == 6 else image[:, None]).float() + draw.image_noise
        image = noisy * _over(~draw.drop_image, noisy)
    return text, image


def _over(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Reshape flags [n] so that they broadcast over `values` [n, ...]."""
    return flags.view(-1, *[1] * (values.ndim - 1))


def _each_caption(text: torch.Tensor, kept: int) -> torch.Tensor:
    """Expand prompt embeddings to [k n, L, D]; they are per group [n, L, D] or per candidate [n, k, L, D]."""
    return torch.cat([text] * kept if text.ndim == 3 else list(text.unbind(1)))
