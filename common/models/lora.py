"""Low-rank adapters (LoRA, Hu et al. 2021) on the transformer, by peft: injected, switched, saved and loaded.

An adapter adds (alpha / rank) B A x to a linear layer's output. A is random, B starts at zero, so a fresh adapter is
the base model itself. Several named adapters may sit side by side; one of them is active. An adapter's state has the
layers' own names, without the adapter's: ``transformer_blocks.0.attn1.to_q.lora_A.weight``.
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
    """Add a fresh adapter `name` to `transformer`, in place, active and trainable; everything else is frozen.

    A is uniform as torch's linear layers are, a function of (seed, layer) alone; B is 0. `ConfigError` when no layer
    matches `config.targets`.
    """
    peft_config = PeftLoraConfig(**peft_settings(config))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
            inject_adapter_in_model(peft_config, transformer, adapter_name=name)
    except ValueError as error:
        raise ConfigError(f"learner.lora.targets = {list(config.targets)}: {str(error).splitlines()[0]}") from None
    with torch.no_grad():
        for key, parameter in adapter_parameters(transformer, name).items():
            parameter.copy_(_fresh(key, parameter, seed))
    activate(transformer, name, trainable=name)


def peft_settings(config: LoraConfig) -> dict[str, Any]:
    """What an adapter's tensors do not say themselves, in peft's words."""
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0, "bias": "none"}
    return settings | {"target_modules": list(config.targets)}


def adapter_parameters(transformer: torch.nn.Module, name: str) -> dict[str, torch.nn.Parameter]:
    """The adapter's own parameters by their public names (without the adapter's name)."""
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
    """Copy `state` into the adapter. `ConfigError` names the first tensor that is missing, foreign or misshapen."""
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
    """Let adapter `name` act in forward passes; only adapter `trainable` asks for gradients."""
    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(name, inference_mode=True)
    for parameter in adapter_parameters(transformer, trainable).values():
        parameter.requires_grad_(True)


@contextmanager
def using_adapter(transformer: torch.nn.Module, name: str, trainable: str = "policy") -> Iterator[None]:
    """Within the block adapter `name` acts, afterwards `trainable` again."""
    activate(transformer, name, trainable)
    try:
        yield
    finally:
        activate(transformer, trainable, trainable)


def _fresh(key: str, like: torch.Tensor, seed: int) -> torch.Tensor:
    """A new adapter tensor: zero for B; for A uniform within 1/sqrt(inputs), on every device alike."""
    if ".lora_B." in key:
        return torch.zeros_like(like)
    number = int.from_bytes(blake2b(f"{seed}|{key}".encode(), digest_size=7).digest(), "big")
    bound = 1.0 / math.sqrt(like.shape[1])
    values = torch.rand(like.shape, generator=torch.Generator().manual_seed(number)) * (2 * bound) - bound
    return values.to(like)
