"""DDIM inversion: finds the noise from which the deterministic sampler reproduces a given clip.

It is used for sampling only (``douga sample --invert CLIP``): new clips get the motion of that clip, with their own
first frame and caption. HuViDPO (arXiv 2502.01690) and LAMP (Wu et al. 2024, "LAMP: Learn A Motion Pattern for Few-Shot
Video Generation"), whose first stage HuViDPO adopts, use it in the same way. Their public code draws the noise of
training steps from a normal distribution (`train_lamp.py` of both), and inverts a training clip only to start sampling
from it: in validation (``use_inv_latent``, off in the published configs) and for video editing (``--editing``).

```
clip ──> VAE ──> x0 ──> v_theta at increasing t, empty caption, the clip's own first frame ──> x_T ──> `denoise`
```

| symbol | here | meaning |
|---|---|---|
| t' < t | `scheduler.timesteps` | consecutive timesteps of the sampler; the clean clip is below the first |
| a_t (alpha bar) | `scheduler.alphas_cumprod` | fraction of the signal's variance left at t; 1 for the clean clip |
| x0_hat | | sqrt(a_t') x_t' - sqrt(1 - a_t') v_theta(x_t', t) |
| eps_hat | | sqrt(1 - a_t') x_t' + sqrt(a_t') v_theta(x_t', t) |
| x_t | `invert` | sqrt(a_t) x0_hat + sqrt(1 - a_t) eps_hat |

This is DDIM's deterministic step (Song et al. 2021, "Denoising Diffusion Implicit Models", equation 12 with sigma = 0)
in reverse, in terms of v. Inversion uses v at x_t', sampling uses v at x_t, so the reconstruction is exact only in the
limit of short steps. If a_T = 0 (zero terminal SNR), x_T is eps_hat: it holds only what v_theta encoded of the clip.

Deviations from the published code:
- The clip's clean first frame is the model's image condition, on extra channels, and the first latent frame is noised
  like the others. In the published code the clean first frame is part of x_t, and there is no other image condition.
- The number of steps is `sampler.steps` in both directions (50 and 50 there).

HuViDPO (section 3.2) gives no equation for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actors.acceleration import reset_cache
from actors.denoise import Condition, guided_v
from actors.loop import NonFiniteLatentsError
from actors.offline import frames_of
from actors.sampler import Sampler
from common.config import RunConfig
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt, WeightVersion
from common.models.cogvideox import ModelFolder, Scheduler, pad_front
from common.models.shapes import front_padding


class InvertedSampler(Sampler):
    """A `Sampler` that starts every candidate from the inverted noise of `clip`, under its weights. Seeds are ignored.

    Raises:
        ConfigError: the clip is broken or too short, or `sampler.scheduler` is not "ddim", the deterministic one.
    """

    def __init__(self, model: ModelFolder, config: RunConfig, clip: Path, worker: str = "sampler-0") -> None:
        if config.sampler.scheduler != "ddim":
            found = config.sampler.scheduler
            raise ConfigError(f"sampler.scheduler = {found!r}: from inverted noise only 'ddim' follows the clip")
        self._clip, self._pixels = clip, frames_of(clip, config.model)
        super().__init__(model, config, worker)
        self._noise: torch.Tensor | None = None

    def load(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        """See `Sampler.load`. The inverted noise depends on the weights, so it is computed again."""
        super().load(version, state)
        self._noise = None

    def fixed_noise(self) -> torch.Tensor:
        """x_T of the clip, [F + padding, C, h, w]. Raises `SamplingError` if it is not finite."""
        if self._noise is None:
            conditioning = self.encode(Prompt(0, self._clip.stem, "", encode_png(self._pixels[0])))
            condition, x0 = self._condition(conditioning), self.latents_of(self._pixels)
            self._noise = invert(self._transformer, self._scheduler, condition, x0, steps=self._config.sampler.steps)
            if not torch.isfinite(self._noise).all():
                raise NonFiniteLatentsError(f"{self._clip}: non-finite noise under version {self.version}")
        return self._noise


@torch.inference_mode()
def invert(
    transformer: Any, scheduler: Scheduler, condition: Condition, x0: torch.Tensor, *, steps: int
) -> torch.Tensor:
    """Invert the clean latents `x0` [F, C, h, w], without guidance.

    For CogVideoX 1.5 the clean clip is padded as in training (`pad_front`), and the padding is inverted with it.

    Returns:
        x_T [F + padding, C, h, w] in the transformer's dtype.
    """
    reset_cache(transformer)
    scheduler.set_timesteps(steps, device=x0.device)
    latents = pad_front(x0[None], front_padding(transformer.config, x0.shape[0]))
    below = scheduler.final_alpha_cumprod
    for t in scheduler.timesteps.flip(0):
        v = guided_v(transformer, latents.to(transformer.dtype), condition, t, 1.0)
        level = scheduler.alphas_cumprod[t.cpu()]
        clean = below.sqrt() * latents.float() - (1 - below).sqrt() * v
        noise = (1 - below).sqrt() * latents.float() + below.sqrt() * v
        latents, below = level.sqrt() * clean + (1 - level).sqrt() * noise, level
    return latents[0].to(transformer.dtype)
