"""The forward diffusion process and the prediction target of CogVideoX, with the checkpoint's own noise schedule.

| symbol | here | meaning |
|---|---|---|
| T | `steps` | training timesteps, 1000 |
| t | `timesteps` [B] | 0 .. T-1, int64 |
| a_t (alpha bar) | `alphas_cumprod` [T] | fraction of the signal's variance left at t |
| x0, eps | [B, ...] | clean latents, standard normal noise |
| x_t | `add_noise` | sqrt(a_t) x0 + sqrt(1 - a_t) eps |
| v* | `v_target` | sqrt(a_t) eps - sqrt(1 - a_t) x0 (Salimans & Ho 2022, "Progressive Distillation", appendix D) |

With v, (x0_hat - x0)^2 / (1 - a_t) equals (v_hat - v*)^2. The v error needs no division, so it is defined at every t in
any precision, including t = T - 1 where a_t = 0 (zero terminal SNR, Lin et al. 2023, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import ConfigError

# Defaults of CogVideoX's scheduler classes, for keys that a config leaves out.
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 3.0,
}


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal and noise scale per timestep. Create it with `from_config`."""

    alphas_cumprod: torch.Tensor  # float64 [T], decreasing, in [0, 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Build the schedule of a scheduler config.

        Raises:
            ConfigError: the model does not predict v, or the beta schedule is unknown.
        """
        values = DEFAULTS | {name: config[name] for name in DEFAULTS if name in config}
        if values["prediction_type"] != "v_prediction":
            found = values["prediction_type"]
            raise ConfigError(f"scheduler config: prediction_type = {found!r}; CogVideoX needs 'v_prediction'")
        alphas = torch.cumprod(1.0 - _betas(values), 0)
        shift = float(values["snr_shift_scale"])
        alphas = alphas / (shift + (1.0 - shift) * alphas)
        return cls(_zero_terminal(alphas) if values["rescale_betas_zero_snr"] else alphas)

    @property
    def steps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    def shares(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), float32, shaped [B, 1, ...] to multiply `like` [B, ...]."""
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps].reshape(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().float(), (1.0 - alphas).sqrt().float()

    def add_noise(self, x0: torch.Tensor, eps: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t [B, ...], float32 whatever the inputs' dtype."""
        signal, noise = self.shares(timesteps, x0)
        return signal * x0.float() + noise * eps.float()

    def v_target(self, x0: torch.Tensor, eps: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v* [B, ...], float32 whatever the inputs' dtype."""
        signal, noise = self.shares(timesteps, x0)
        return signal * eps.float() - noise * x0.float()


def _betas(values: Mapping[str, Any]) -> torch.Tensor:
    """The variance added at each step, float64 [T]."""
    kind, steps = values["beta_schedule"], int(values["num_train_timesteps"])
    start, end = float(values["beta_start"]), float(values["beta_end"])
    if values["trained_betas"] is not None:
        return torch.tensor(values["trained_betas"], dtype=torch.float64)
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        left = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1.0 - left[1:] / left[:-1]).clamp(max=0.999)
    allowed = "linear, scaled_linear, squaredcos_cap_v2"
    raise ConfigError(f"scheduler config: beta_schedule = {kind!r}; allowed are {allowed}")


def _zero_terminal(alphas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(a_t) so that it ends at 0 and keeps its start value."""
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
