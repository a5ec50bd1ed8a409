"""The frozen reference policy of DPO, and its curriculum (Zhang et al. 2024, "OnlineVPO").

Every K optimizer steps the reference becomes the policy, so that the next steps are measured from where the policy
stands. For LoRA the reference is a second, frozen adapter; its B starts at zero, so the first reference is the base
model, as with adapters off. For full fine-tuning it is a frozen whole copy on every rank.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch

from common.config import LoraConfig
from common.lora import acting, activate, adapter_parameters, inject_lora
from learner.engine import Engine

POLICY, REFERENCE = "policy", "reference"


class Reference(ABC):
    """A frozen policy, and the live tensors of both. Built before the engine, which may shard the module."""

    kind: Literal["adapter", "full"]  # of published versions
    policy: Mapping[str, torch.Tensor]  # the trainable policy's live tensors, by public name
    parameters: Mapping[str, torch.Tensor]  # the reference's, by the same names

    @abstractmethod
    def acting(self, engine: Engine) -> AbstractContextManager[torch.nn.Module]:
        """``with reference.acting(engine) as model``: what to call for the reference's prediction, no gradients."""

    @abstractmethod
    def refresh(self, engine: Engine) -> None:
        """Reference <- policy. Collective."""

    def load(self, engine: Engine, state: Mapping[str, torch.Tensor]) -> None:
        """Take a saved reference. Collective."""
        engine.assign(self.parameters, state)


class AdapterReference(Reference):
    """The reference as an adapter beside the policy's, for LoRA. Injects both."""

    kind = "adapter"

    def __init__(self, module: torch.nn.Module, lora: LoraConfig, seed: int) -> None:
        inject_lora(module, lora, seed, REFERENCE)
        inject_lora(module, lora, seed, POLICY)
        activate(module, POLICY, trainable=POLICY)
        self._module = module
        self.policy = adapter_parameters(module, POLICY)
        self.parameters = adapter_parameters(module, REFERENCE)

    @contextmanager
    def acting(self, engine: Engine) -> Iterator[torch.nn.Module]:
        with acting(self._module, REFERENCE, trainable=POLICY), torch.no_grad():
            yield engine.model

    def refresh(self, engine: Engine) -> None:
        both = [*self.policy.values(), *self.parameters.values()]
        with engine.whole(both, change=True), torch.no_grad():
            for name, parameter in self.policy.items():
                self.parameters[name].copy_(parameter)


class CopyReference(Reference):
    """The reference as a frozen copy of the whole module, for full fine-tuning."""

    kind = "full"

    def __init__(self, module: torch.nn.Module) -> None:
        module.requires_grad_(True)
        self._copy = copy.deepcopy(module).requires_grad_(False)
        self.policy = module_tensors(module)
        self.parameters = module_tensors(self._copy)

    @contextmanager
    def acting(self, engine: Engine) -> Iterator[torch.nn.Module]:
        del engine  # the copy stands alone
        with torch.no_grad():
            yield self._copy

    def refresh(self, engine: Engine) -> None:
        for name, tensor in self.policy.items():
            with engine.whole([tensor]), torch.no_grad():
                self.parameters[name].copy_(tensor)


def module_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a full version holds: every parameter and persistent buffer, live, under its state_dict name."""
    saved = module.state_dict().keys()
    live = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in live.items() if name in saved}
