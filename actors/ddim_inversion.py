"""DDIM inversion: noise from which the deterministic sampler makes a clip that is already there.

For sampling alone (``douga sample --invert CLIP``), as HuViDPO (arXiv 2502.01690) and LAMP (Wu et al. 2024, "LAMP:
Learn A Motion Pattern for Few-Shot Video Generation"), whose first stage it takes over, have it: their public code
draws the noise of every training step from a normal distribution (`train_lamp.py` of both), and inverts a clip of the
training set only to start sampling from it, in validation (``use_inv_latent``, off in the published configs) and for
editing a video (``--editing``). So new clips take on that clip's motion under a first frame and a caption of their own.

```
clip ──> VAE ──> x0 ──> v_theta at rising t, empty caption, the clip's own first frame ──> x_T ──> start of `denoise`
```

| symbol | here | meaning |
|---|---|---|
| t' < t | `scheduler.timesteps` | neighbours on the sampler's own ladder; below the first stands the clean clip |
| a_t (alpha bar) | `scheduler.alphas_cumprod` | share of the signal's variance left at t; 1 of the clean clip |
| x0_hat | | sqrt(a_t') x_t' - sqrt(1 - a_t') v_theta(x_t', t) |
| eps_hat | | sqrt(1 - a_t') x_t' + sqrt(a_t') v_theta(x_t', t) |
| x_t | `invert` | sqrt(a_t) x0_hat + sqrt(1 - a_t) eps_hat |

That is DDIM's deterministic step (Song et al. 2021, "Denoising Diffusion Implicit Models", equation 12 with sigma = 0)
taken upwards, in v. On the way up v is that of x_t', on the way down that of x_t: the way back ends at the clip only as
steps grow short. Where a_T = 0 (zero terminal SNR) x_T is eps_hat, and knows of the clip what v_theta knew.

Deviations from the published code: the clip's clean first frame is the model's image condition, on channels of its
own, and the first latent frame is noise like the others; there it stands in x_t, and nothing else conditions on it.
Number of steps: `sampler.steps`, going up as coming down (there 50 and 50). Equation number in HuViDPO or LAMP: not
sourced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actors.acceleration import reset_cache
from actors.denoise import Condition, guided_v
from actors.loop import NonFiniteError
from actors.offline import frames_of
from actors.sampler import Sampler
from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Prompt, WeightVersion
from common.models.cogvideox import ModelFolder, Scheduler
from common.toon.prompts import encode_png


class InvertedSampler(Sampler):
    """Starts every candidate from the inverted noise of `clip`, under the weights it holds: seeds change nothing.

    `ConfigError` when the clip is broken or too short, or where `sampler.scheduler` is not the deterministic one.
    """

    def __init__(self, model: ModelFolder, config: RunConfig, clip: Path, worker: str = "sampler-0") -> None:
        if config.sampler.scheduler != "ddim":
            found = config.sampler.scheduler
            raise ConfigError(f"sampler.scheduler = {found!r}: from inverted noise only 'ddim' follows the clip")
        self._clip, self._pixels = clip, frames_of(clip, config.model)
        super().__init__(model, config, worker)
        self._noise: torch.Tensor | None = None

    def load(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        """See `Sampler.load`; other weights have other noise."""
        super().load(version, state)
        self._noise = None

    def start(self) -> torch.Tensor:
        """x_T of the clip, [F, C, h, w]. `SamplingError` when it is not finite."""
        if self._noise is None:
            alone = self.encode(Prompt(0, self._clip.stem, "", encode_png(self._pixels[0])))
            given, x0 = self._condition(alone), self.latents_of(self._pixels)
            self._noise = invert(self._transformer, self._scheduler, given, x0, steps=self._config.sampler.steps)
            if not torch.isfinite(self._noise).all():
                raise NonFiniteError(f"{self._clip}: non-finite noise under version {self.version}")
        return self._noise


@torch.inference_mode()
def invert(
    transformer: Any, scheduler: Scheduler, condition: Condition, x0: torch.Tensor, *, steps: int
) -> torch.Tensor:
    """x_T [F, C, h, w] of the clean latents `x0` [F, C, h, w], without guidance, in the transformer's dtype.

    The model call pads the frames of CogVideoX 1.5, as in training.
    """
    reset_cache(transformer)
    scheduler.set_timesteps(steps, device=x0.device)
    latents, below = x0[None], scheduler.final_alpha_cumprod
    for t in scheduler.timesteps.flip(0):
        v = guided_v(transformer, latents.to(transformer.dtype), condition, t, 1.0)
        level = scheduler.alphas_cumprod[t.cpu()]
        clean = below.sqrt() * latents.float() - (1 - below).sqrt() * v
        noise = (1 - below).sqrt() * latents.float() + below.sqrt() * v
        latents, below = level.sqrt() * clean + (1 - level).sqrt() * noise, level
    return latents[0].to(transformer.dtype)
