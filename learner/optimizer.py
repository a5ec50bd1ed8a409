"""AdamW with float32 or 8-bit moments, and saving and restoring its state.

| `learner.optimizer` | moments | implementation |
|---|---|---|
| adamw | 8 bytes per parameter, float32 | torch, fused kernel |
| adamw_8bit | 2 bytes per parameter and a scale per 256 (Dettmers et al. 2022); small tensors float32 | bitsandbytes |

Both update float32 weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from common.config import LearnerConfig
from common.errors import ConfigError


def make_optimizer(parameters: Iterable[torch.Tensor], config: LearnerConfig) -> torch.optim.Optimizer:
    """Create the configured AdamW for float32 `parameters`. Raises `ConfigError` if its package is not installed."""
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters), fused=True, **settings)
    check_optimizer(config)
    from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 - takes five seconds to import

    return AdamW8bit(list(parameters), **settings)


def check_optimizer(config: LearnerConfig) -> None:
    """Raises `ConfigError` if the package of the configured optimizer is not installed. Imports nothing."""
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "learner.optimizer = 'adamw_8bit': needs the package bitsandbytes, which is not installed: "
            "pip install 'douga[bitsandbytes]', or set 'adamw'"
        )


def saved_state(
    optimizer: torch.optim.Optimizer, masters: Sequence[torch.Tensor], with_masters: bool
) -> dict[str, torch.Tensor]:
    """Copy the optimizer state of each of `masters` to host memory, under names like ``0.exp_avg``.

    Includes the masters themselves as ``0.master`` if `with_masters`.
    """
    state: dict[str, torch.Tensor] = {}
    for index, master in enumerate(masters):
        state |= {f"{index}.{name}": torch.as_tensor(value) for name, value in optimizer.state.get(master, {}).items()}
        if with_masters:
            state[f"{index}.master"] = master
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def restore(
    optimizer: torch.optim.Optimizer,
    masters: Sequence[torch.Tensor],
    with_masters: bool,
    state: Mapping[str, torch.Tensor],
) -> None:
    """Restore the result of `saved_state`. The masters must have the same number and sizes."""
    parts: list[dict[str, Any]] = [{} for _ in masters]
    for key, value in state.items():
        index, name = key.split(".")
        # bitsandbytes counts steps in an int, torch in a float32 tensor.
        parts[int(index)][name] = value.item() if value.dtype == torch.int64 else value
    for master, own in zip(masters, parts, strict=True):
        if with_masters:
            with torch.no_grad():
                master.copy_(own.pop("master"))
        optimizer.state[master] = {
            name: value.to(master.device, copy=True) if isinstance(value, torch.Tensor) else value
            for name, value in own.items()
        }
