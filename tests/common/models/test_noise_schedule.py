"""The noise schedule against diffusers' own schedulers, and literal numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from common.errors import ConfigError
from common.models.noise_schedule import NoiseSchedule

COGVIDEOX_5B = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0}
COGVIDEOX_2B = COGVIDEOX_5B | {"snr_shift_scale": 3.0}
CONFIGS: list[dict[str, Any]] = [
    COGVIDEOX_5B,
    COGVIDEOX_2B,
    {"prediction_type": "v_prediction"},  # the classes' defaults: shift 3, no rescaling
    COGVIDEOX_5B | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    COGVIDEOX_5B | {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": False},
    {"prediction_type": "v_prediction", "trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
]
SCHEDULERS = [CogVideoXDPMScheduler, CogVideoXDDIMScheduler]


def latents(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_alphas_are_the_schedulers_own(kind: Any, config: dict[str, Any]) -> None:
    ours, theirs = NoiseSchedule.from_config(config), kind(**config)
    assert ours.steps == len(theirs.alphas_cumprod)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("config", [COGVIDEOX_5B, COGVIDEOX_2B])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_noise_and_target_are_the_schedulers_own(kind: Any, config: dict[str, Any]) -> None:
    ours, theirs = NoiseSchedule.from_config(config), kind(**config)
    x0, eps, t = latents(1), latents(2), torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.v_target(x0, eps, t), theirs.get_velocity(x0, eps, t), atol=1e-5, rtol=1e-5)


def test_another_shift_or_target_is_far_away() -> None:
    theirs = CogVideoXDPMScheduler(**COGVIDEOX_5B)
    x0, eps, t = latents(1), latents(2), torch.tensor([100, 500, 900])
    wrong = NoiseSchedule.from_config(COGVIDEOX_2B)
    assert (wrong.add_noise(x0, eps, t) - theirs.add_noise(x0, eps, t)).abs().mean() > 0.05
    assert (eps - theirs.get_velocity(x0, eps, t)).abs().mean() > 0.3  # the target of an epsilon model


def test_a_quarter_of_signal_by_hand() -> None:
    schedule = NoiseSchedule(torch.tensor([0.64, 0.25, 0.0], dtype=torch.float64))
    x0, eps, t = torch.tensor([[10.0], [10.0], [10.0]]), torch.tensor([[5.0], [0.0], [5.0]]), torch.arange(3)
    # sqrt(.64) 10 + sqrt(.36) 5 = 11;  .5 x 10 = 5;  0 + 5
    torch.testing.assert_close(schedule.add_noise(x0, eps, t), torch.tensor([[11.0], [5.0], [5.0]]))
    # .8 x 5 - .6 x 10 = -2;  0 - sqrt(.75) 10 = -8.66025;  -10
    torch.testing.assert_close(schedule.v_target(x0, eps, t), torch.tensor([[-2.0], [-8.6602540], [-10.0]]))


def test_v_error_is_the_x0_error_over_the_noise_share() -> None:
    schedule = NoiseSchedule.from_config(COGVIDEOX_5B)
    x0, eps, v, t = latents(1), latents(2), latents(3), torch.tensor([10, 500, 998])
    signal, noise = schedule.shares(t, x0)
    x0_hat = signal * schedule.add_noise(x0, eps, t) - noise * v
    left = ((x0_hat - x0) ** 2 / noise**2).mean((1, 2, 3, 4))
    right = ((v - schedule.v_target(x0, eps, t)) ** 2).mean((1, 2, 3, 4))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_bfloat16_latents_are_noised_in_float32() -> None:
    schedule, t = NoiseSchedule.from_config(COGVIDEOX_5B), torch.tensor([0, 500, 999])
    x0 = latents(1).bfloat16()
    assert schedule.add_noise(x0, latents(2), t).dtype == torch.float32
    torch.testing.assert_close(schedule.v_target(x0, latents(2), t), schedule.v_target(x0.float(), latents(2), t))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"prediction_type": "epsilon"}, "v_prediction"), ({"beta_schedule": "sigmoid"}, "squaredcos_cap_v2")],
)
def test_unknown_schedules_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule.from_config(COGVIDEOX_5B | change)
