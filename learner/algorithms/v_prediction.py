"""The v errors that every loss is made of, and the chance that winner, loser, policy and reference share.

Deviation from the papers: none in the error. Optional and off by default: noise on the first frame's *latent* (the
models' trainers add it to the pixels; the learner holds no VAE).

| symbol | here | meaning |
|---|---|---|
| x0^w, x0^l | `PairBatch.winner`, `PairBatch.loser` [n, F, C, h, w] | latents of the preferred and the other clip |
| t | `Draw.timesteps` [n] | 0 .. T-1, one per pair |
| eps | `Draw.noise` [n, F, C, h, w] | one per pair, float32 |
| c | `PairBatch.prompt_embeds`, `.image_latent` | caption and clean first frame; of recorded pairs c_w and c_l |
| v* | `NoiseSchedule.v_target` | sqrt(a_t) eps - sqrt(1 - a_t) x0 |
| e_theta(x0) | `PairErrors` | mean over all non-batch dimensions of (v_theta(x_t, t, c) - v*)^2, float32 |

Everything random is a function of (run seed, step, pair's ordinal) and the pair's place in the global batch. It does
not depend on ranks or micro-batches, and a step that is taken again after a resume repeats bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from common.config import LearnerConfig
from common.models.noise_schedule import NoiseSchedule
from learner.batch import PairBatch

IMAGE_NOISE_LOG_MEAN, IMAGE_NOISE_LOG_STD = -3.0, 0.5  # sigma = exp(N(-3, 0.5)), as CogVideoX I2V was trained

# (x_t [B, F, C, h, w], image latent [B, 1, C, h, w] or None, t [B], prompt embeddings [B, L, D]) -> v [B, F, C, h, w]
Predict = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """What chance decided for n pairs."""

    timesteps: torch.Tensor  # int64 [n]
    noise: torch.Tensor  # float32 [n, F, C, h, w]
    drop_caption: torch.Tensor  # bool [n]: train on the empty caption
    drop_image: torch.Tensor  # bool [n]: train on a zero image latent
    image_noise: torch.Tensor  # float32 [n, 1, C, h, w], added to the image latent; zero when the option is off

    def to(self, device: torch.device | str) -> Draw:
        """The same on another device."""
        return Draw(
            self.timesteps.to(device),
            self.noise.to(device),
            self.drop_caption.to(device),
            self.drop_image.to(device),
            self.image_noise.to(device),
        )


@dataclass(frozen=True)
class PairErrors:
    """e of winner and loser under the policy (with gradient) and the reference (without), float32 [n] each."""

    policy_winner: torch.Tensor
    policy_loser: torch.Tensor
    reference_winner: torch.Tensor
    reference_loser: torch.Tensor

    @property
    def winner_gain(self) -> torch.Tensor:
        """e_theta(w) - e_ref(w): below 0 where the policy fits the winner better than the reference does."""
        return self.policy_winner - self.reference_winner

    @property
    def loser_gain(self) -> torch.Tensor:
        """e_theta(l) - e_ref(l)."""
        return self.policy_loser - self.reference_loser


def draw(seed: int, step: int, ordinals: Sequence[int], rules: LearnerConfig, pairs: PairBatch, steps: int) -> Draw:
    """The chance of `pairs`, a part of the global batch `ordinals` of optimizer step `step`; `steps` is T.

    t is stratified: the batch's n pairs take one t each from n equal parts of 0 .. T-1, in random order.
    """
    strata = stratified_timesteps(seed, step, ordinals, steps)
    rows = [_draw_one(seed, step, ordinal, rules, pairs) for ordinal in pairs.ordinals]
    noise, image_noise, drops = zip(*rows, strict=True)
    dropped = torch.stack(drops)
    timesteps = torch.tensor([strata[ordinal] for ordinal in pairs.ordinals])
    return Draw(timesteps, torch.stack(noise), dropped[:, 0], dropped[:, 1], torch.stack(image_noise))


def stratified_timesteps(seed: int, step: int, ordinals: Sequence[int], steps: int) -> dict[int, int]:
    """One t in 0 .. steps-1 per ordinal: floor(steps (stratum + u) / n) with a random stratum each, u in [0, 1)."""
    count = len(ordinals)
    order = torch.randperm(count, generator=_generator(seed, step, "strata")).tolist()
    jitter = [torch.rand((), generator=_generator(seed, step, "t", o), dtype=torch.float64).item() for o in ordinals]
    drawn = [math.floor(steps * (s + u) / count) for s, u in zip(order, jitter, strict=True)]
    return {ordinal: min(t, steps - 1) for ordinal, t in zip(ordinals, drawn, strict=True)}


def _draw_one(
    seed: int, step: int, ordinal: int, rules: LearnerConfig, pairs: PairBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = pairs.winner.shape[1:]
    noise = torch.randn(shape, generator=_generator(seed, step, "noise", ordinal))
    drops = torch.rand(2, generator=_generator(seed, step, "drop", ordinal))
    image_noise = torch.zeros(1, *shape[1:])
    if rules.image_noise:
        generator = _generator(seed, step, "image", ordinal)
        log_sigma = IMAGE_NOISE_LOG_MEAN + IMAGE_NOISE_LOG_STD * torch.randn((), generator=generator)
        image_noise = log_sigma.exp() * torch.randn(image_noise.shape, generator=generator)
    return noise, image_noise, drops < torch.tensor([rules.caption_drop, rules.image_drop])


def _generator(*parts: int | str) -> torch.Generator:
    """A generator whose seed is a digest of `parts`; always on the CPU, so that every device gets the same numbers."""
    digest = blake2b("|".join(map(str, parts)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def v_errors(
    predict: Predict, schedule: NoiseSchedule, pairs: PairBatch, draw: Draw, empty_embeds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(e(w), e(l)), float32 [n] each, from one forward pass over winners and losers with the same `draw`.

    Where every pair is a clip against itself (`PairBatch.alone`, as in fine-tuning on clips) it is a pass over the
    winners, and e(l) is e(w). `empty_embeds` [L, D] is the empty caption's embedding; needed where the draw drops
    captions.
    """
    sides = 1 if pairs.alone else 2
    x0 = torch.cat([pairs.winner, pairs.loser][:sides])
    noise, timesteps = torch.cat([draw.noise] * sides), torch.cat([draw.timesteps] * sides)
    text, image = _condition(pairs, draw, empty_embeds)
    x_t = schedule.add_noise(x0, noise, timesteps)
    v = predict(x_t, None if image is None else _each(image, 5, sides), timesteps, _each(text, 3, sides))
    errors = (v.float() - schedule.v_target(x0, noise, timesteps)).square().flatten(1).mean(1).chunk(sides)
    return errors[0], errors[-1]


def _condition(
    pairs: PairBatch, draw: Draw, empty_embeds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Caption and image after the drops and the optional noise."""
    text, image = pairs.prompt_embeds, pairs.image_latent
    if draw.drop_caption.any():
        if empty_embeds is None:
            raise ValueError("captions are dropped, but the learner was not given the empty caption's embedding")
        text = torch.where(_over(draw.drop_caption, text), empty_embeds.to(text), text)
    if image is not None:
        noise = draw.image_noise if image.ndim == 5 else draw.image_noise[:, None]
        image = (image.float() + noise) * _over(~draw.drop_image, image)
    return text, image


def _over(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One flag per pair [n], to be broadcast over `values` [n, ...]."""
    return flags.view(-1, *[1] * (values.ndim - 1))


def _each(condition: torch.Tensor, shared: int, sides: int) -> torch.Tensor:
    """For the winners, then the losers: what they share (`shared` dimensions), or what each has [n, 2, ...]."""
    return torch.cat([condition] * sides if condition.ndim == shared else [condition[:, i] for i in range(sides)])
