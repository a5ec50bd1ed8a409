"""Sampling inside the learner, with a gradient: for algorithms that follow the gradient of a reward.

```
x_0 .. x_S   noisy ──> clean: DDIM steps of the policy, the last ones with a gradient
decode       x_S ──> VAE ──> pixels
reward       pixels ──> R per frame
```

| symbol | here | meaning |
|---|---|---|
| S | `sampler.steps` | denoising steps |
| t_i | `Rollout.timesteps` | timestep of step i = 0 .. S-1, falling |
| x_i | [n, p + F, C, h, w] | noisy latents before step i; x_S is clean |
| p, F, C, h, w | | as in `learner/algorithms/v_prediction.py` |
| R | `Rollout.reward` [n, frames] | reward of each frame, 1 at a raw score of 100 |

Deviations from the papers that the algorithms share:
1. Steps are deterministic DDIM steps, whichever `sampler.scheduler` the samplers use.
2. CogVideoX's VAE decodes frames together (causal convolutions over time), so all frames are decoded, also where a
   paper decodes only those that it scores.
3. R is not clamped to [0, 1], as the reward of a selection is: a clamped reward has no gradient.
4. A clip's reward is the mean over its frames. Decoded pixels are clamped to [0, 1]; saturated ones have no gradient.

Guidance is the samplers' (`common/models/guidance.py`). All draws are functions of the run seed, the step and the
group's ordinal; they do not depend on ranks or micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.config import RunConfig
from common.messages import Prompt
from common.models.cogvideox import ModelFolder, decode_latents, pad_front
from common.models.guidance import guided, scale_at
from common.models.noise_schedule import NoiseSchedule
from learner.algorithms.v_prediction import Predict, generator
from learner.batch import Batch

# (pixels [n, frames, 3, H, W] in [0, 1], n prompts) -> R [n, frames], differentiable
FrameRewards = Callable[[torch.Tensor, Sequence[Prompt]], torch.Tensor]


class RolloutModels:
    """What a rollout needs besides the transformer: scheduler, VAE and rewards. Loaded once per learner."""

    def __init__(self, model: ModelFolder, config: RunConfig, rewards: FrameRewards) -> None:
        self.config, self.rewards = config, rewards
        self.scheduler: Any = model.make_scheduler("ddim")
        self.scheduler.set_timesteps(config.sampler.steps)
        self.schedule = NoiseSchedule.from_config(model.scheduler_config)
        self.vae = model.load_vae(config.model.dtype, config.model.device, config.sampler.vae_tiling)
        if config.learner.gradient_checkpointing != "off":
            self.vae.enable_gradient_checkpointing()

    @property
    def timesteps(self) -> list[int]:
        """t_0 .. t_{S-1}."""
        return self.scheduler.timesteps.tolist()


@dataclass(frozen=True)
class Rollout:
    """n groups of one micro-batch, ready to be denoised by the policy. The input of the loss of such an algorithm."""

    batch: Batch  # on the learner's device
    weights: torch.Tensor  # float32 [n, ...], the rows of `Algorithm.weights` for these groups
    step: int  # of the optimizer, 1, 2, ...
    padding: int  # p
    predict: Predict
    empty_embeds: torch.Tensor | None  # [L, D]; needed with guidance
    models: RolloutModels

    @property
    def timesteps(self) -> list[int]:
        """t_0 .. t_{S-1}."""
        return self.models.timesteps

    # Draws.

    def noise(self) -> torch.Tensor:
        """Standard normal noise [n, p + F, C, h, w], one draw per group."""
        frames, *frame = self.batch.latents.shape[2:]
        shape = (self.padding + frames, *frame)
        drawn = [torch.randn(shape, generator=self.draws("rollout", ordinal)) for ordinal in self.batch.ordinals]
        return torch.stack(drawn).to(self.batch.latents.device)

    def draws(self, *what: int | str) -> torch.Generator:
        """A generator for the draws called `what` of this optimizer step."""
        return generator(self.models.config.seed, self.step, *what)

    # Denoising.

    def noisy(self, candidate: int, first: int) -> torch.Tensor:
        """x_first of kept candidate `candidate` with `noise`: sqrt(a_t) x0 + sqrt(1 - a_t) eps, t = t_first."""
        x0, count = pad_front(self.batch.latents[:, candidate], self.padding), len(self.batch)
        timesteps = torch.full((count,), self.timesteps[first], device=x0.device)
        return self.models.schedule.add_noise(x0, self.noise(), timesteps)

    def denoise(self, x: torch.Tensor, first: int = 0, last: int | None = None, *, gradient_steps: int) -> torch.Tensor:
        """x_last from x_first, with a gradient through the last `gradient_steps` steps. By default x_S."""
        last = len(self.timesteps) if last is None else last
        for index in range(first, last):
            with torch.set_grad_enabled(index >= last - gradient_steps):
                x = self._step(x, index).prev_sample
        return x

    def clean(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """The clean latents predicted from x_index, with a gradient: sqrt(a_t) x_t - sqrt(1 - a_t) v."""
        return self._step(x, index).pred_original_sample

    def _step(self, x: torch.Tensor, index: int) -> Any:
        timestep = self.timesteps[index]
        return self.models.scheduler.step(self._v(x, timestep), timestep, x)

    def _v(self, x: torch.Tensor, timestep: int) -> torch.Tensor:
        """v of `x` with guidance, float32."""
        scale = scale_at(self.models.config.sampler, timestep, self.models.schedule.steps)
        captions = [self._captions()]
        if scale > 1:
            captions.insert(0, self._empty_captions())
        image, copies = self._image(), len(captions)
        images = None if image is None else torch.cat([image] * copies)
        timesteps = torch.full((copies * len(x),), timestep, device=x.device)
        v = self.predict(torch.cat([x] * copies), images, timesteps, torch.cat(captions)).float()
        return guided(v, scale) if scale > 1 else v

    def _captions(self) -> torch.Tensor:
        text = self.batch.prompt_embeds
        return text if text.ndim == 3 else text[:, 0]

    def _image(self) -> torch.Tensor | None:
        image = self.batch.image_latent
        return image if image is None or image.ndim == 5 else image[:, 0]

    def _empty_captions(self) -> torch.Tensor:
        if self.empty_embeds is None:
            raise ValueError("guidance needs the embedding of the empty caption")
        return self.empty_embeds.to(self._captions()).expand_as(self._captions())

    # Rewards.

    def reward(self, latents: torch.Tensor) -> torch.Tensor:
        """R [n, frames] of clean latents [n, p + F, C, h, w], differentiable."""
        pixels = (decode_latents(self.models.vae, latents[:, self.padding :]) / 2 + 0.5).clamp(0, 1)
        return self.models.rewards(pixels.float(), self.batch.prompts)
