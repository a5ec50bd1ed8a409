"""Low-rank adapters (LoRA, Hu et al. 2021) on the transformer, with peft: inject, switch, save and load.

An adapter adds (alpha / rank) B A x to a linear layer's output. A is random and B starts at zero, so a new adapter
does not change the model. A model can hold several named adapters, one of which is active. Keys of an adapter's state
dict do not contain the adapter's name: ``transformer_blocks.0.attn1.to_q.lora_A.weight``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from common.config import LoraConfig
from common.errors import ConfigError


def inject_lora(transformer: torch.nn.Module, config: LoraConfig, seed: int, name: str = "policy") -> None:
    """Add a new adapter to `transformer` in place. It is active and trainable; everything else is frozen.

    A has the uniform initialization of torch's linear layers, as a function of (seed, layer); B is 0.

    Raises:
        ConfigError: no layer matches `config.targets`.
    """
    peft_config = PeftLoraConfig(**peft_settings(config))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is intended
            inject_adapter_in_model(peft_config, transformer, adapter_name=name)
    except ValueError as error:
        raise ConfigError(f"learner.lora.targets = {list(config.targets)}: {str(error).splitlines()[0]}") from None
    with torch.no_grad():
        for key, parameter in adapter_parameters(transformer, name).items():
            parameter.copy_(_initial_value(key, parameter, seed))
    activate(transformer, name, trainable=name)


def peft_settings(config: LoraConfig) -> dict[str, Any]:
    """The settings that peft needs in addition to an adapter's tensors."""
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0, "bias": "none"}
    return settings | {"target_modules": list(config.targets)}


def adapter_parameters(transformer: torch.nn.Module, name: str) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters, by their keys without the adapter's name."""
    marker = f".{name}."
    found = {
        key.replace(marker, "."): parameter
        for key, parameter in transformer.named_parameters()
        if marker in key and ".lora_" in key
    }
    if not found:
        raise ConfigError(f"the transformer has no adapter {name!r}")
    return found


def adapter_state(transformer: torch.nn.Module, name: str = "policy") -> dict[str, torch.Tensor]:
    """Copies of the adapter's tensors."""
    return {key: value.detach().clone() for key, value in adapter_parameters(transformer, name).items()}


def load_adapter_state(transformer: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str = "policy") -> None:
    """Copy `state` into the adapter. `ConfigError` names the first missing, unexpected or wrongly shaped tensor."""
    own = adapter_parameters(transformer, name)
    for key in sorted(own.keys() ^ state.keys()):
        what = "missing" if key in own else "not a tensor of this adapter"
        raise ConfigError(f"adapter {name!r}: {key} is {what}; was it made with other learner.lora settings?")
    for key, tensor in state.items():
        if own[key].shape != tensor.shape:
            raise ConfigError(
                f"adapter {name!r}: {key} is {list(tensor.shape)}, the model needs {list(own[key].shape)}"
            )
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)


def activate(transformer: torch.nn.Module, name: str, trainable: str) -> None:
    """Use adapter `name` in forward passes. Only adapter `trainable` requires gradients."""
    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(name, inference_mode=True)
    for parameter in adapter_parameters(transformer, trainable).values():
        parameter.requires_grad_(True)


@contextmanager
def using_adapter(transformer: torch.nn.Module, name: str, trainable: str = "policy") -> Iterator[None]:
    """Context in which adapter `name` is active; afterwards `trainable` is active again."""
    activate(transformer, name, trainable)
    try:
        yield
    finally:
        activate(transformer, trainable, trainable)


def _initial_value(key: str, like: torch.Tensor, seed: int) -> torch.Tensor:
    """Initial adapter tensor: zeros for B; for A uniform in +-1/sqrt(inputs), identical on every device."""
    if ".lora_B." in key:
        return torch.zeros_like(like)
    number = int.from_bytes(blake2b(f"{seed}|{key}".encode(), digest_size=7).digest(), "big")
    bound = 1.0 / math.sqrt(like.shape[1])
    values = torch.rand(like.shape, generator=torch.Generator().manual_seed(number)) * (2 * bound) - bound
    return values.to(like)
