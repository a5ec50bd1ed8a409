"""The frozen reference policy of DPO, and its curriculum (Zhang et al. 2024, "OnlineVPO").

Every K optimizer steps the reference becomes the policy, so that the next steps are measured from where the policy
stands. For LoRA the reference is a second, frozen adapter; its B starts at zero, so the first reference is the base
model, as with adapters off. For full fine-tuning it is a frozen copy:

| `learner.reference` | where the copy lies | bytes on each of N GPUs |
|---|---|---|
| whole | on every rank's device | P b |
| sharded | shares on all ranks, gathered layer by layer for a pass (ZeRO 3) | P b / N |
| host | in host memory; on the device for as long as its pass takes | 0, P b in the pass |

P parameters of b bytes. While the reference works the policy's activations are not there yet, so what a copy from host
memory takes for its pass is below what the policy's pass takes after it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal

import torch

from common.config import LoraConfig
from common.models.cogvideox import compile_blocks
from common.models.lora import activate, adapter_parameters, inject_lora, using_adapter
from learner.engines.base import Engine

POLICY, REFERENCE = "policy", "reference"
Placement = Literal["whole", "sharded", "host"]


class Reference(ABC):
    """A frozen policy, and the live tensors of both. Built before the engine, which may shard the module."""

    kind: Literal["adapter", "full"]  # of published versions
    policy: Mapping[str, torch.Tensor]  # the trainable policy's live tensors, by public name
    parameters: Mapping[str, torch.Tensor]  # the reference's, by the same names

    @abstractmethod
    def forward_context(self, engine: Engine) -> AbstractContextManager[torch.nn.Module]:
        """``with reference.forward_context(engine) as model``: what to call for the reference's prediction, no
        gradients."""

    @abstractmethod
    def refresh(self, engine: Engine) -> None:
        """Reference <- policy. Collective."""

    def place(self, engine: Engine) -> None:
        """Take the place that it will have beside the finished `engine`. Collective."""
        del engine

    @abstractmethod
    def compile(self) -> None:
        """Compile the blocks that are not the policy's own module's."""

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

    def compile(self) -> None:
        """See `Reference.compile`: there are none."""

    @contextmanager
    def forward_context(self, engine: Engine) -> Iterator[torch.nn.Module]:
        with using_adapter(self._module, REFERENCE, trainable=POLICY), torch.no_grad():
            yield engine.model

    def refresh(self, engine: Engine) -> None:
        both = [*self.policy.values(), *self.parameters.values()]
        with engine.whole(both, change=True), torch.no_grad():
            for name, parameter in self.policy.items():
                self.parameters[name].copy_(parameter)


class CopyReference(Reference):
    """The reference as a frozen copy of the whole module, for full fine-tuning."""

    kind = "full"

    def __init__(self, module: torch.nn.Module, placement: Placement = "whole") -> None:
        module.requires_grad_(True)
        self._copy = copy.deepcopy(module).requires_grad_(False)
        self._placement = placement
        self._model = self._copy  # what is called
        if placement == "host":
            _move(self._copy, "cpu")
        self.policy = module_tensors(module)
        self.parameters = module_tensors(self._copy)

    def place(self, engine: Engine) -> None:
        """See `Reference.place`."""
        if self._placement == "sharded":
            self._model = engine.shard(self._copy)

    def compile(self) -> None:
        """See `Reference.compile`."""
        compile_blocks(self._copy)

    @contextmanager
    def forward_context(self, engine: Engine) -> Iterator[torch.nn.Module]:
        with ExitStack() as stack, torch.no_grad():
            if self._placement == "host":
                stack.enter_context(_on_device(self._copy, engine.device))
            yield self._model

    def refresh(self, engine: Engine) -> None:
        for name, tensor in self.policy.items():
            with engine.whole([tensor]):  # one after the other: DeepSpeed's gathering does not nest
                value = tensor.detach().clone()
            engine.assign({name: self.parameters[name]}, {name: value})


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _move(module: torch.nn.Module, device: str) -> None:
    """Parameters and buffers to `device`, the same objects; in host memory pinned where there is a GPU to copy to."""
    for tensor in _tensors(module):
        moved = tensor.data.to(device)
        tensor.data = moved.pin_memory() if tensor.is_cuda else moved


@contextmanager
def _on_device(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block copies of `module`'s tensors are on `device`; nobody may change them."""
    home = [(tensor, tensor.data) for tensor in _tensors(module)]
    for tensor, data in home:
        tensor.data = data.to(device, non_blocking=True, copy=True)
    try:
        yield
    finally:
        for tensor, data in home:
            tensor.data = data


def module_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a full version holds: every parameter and persistent buffer, live, under its state_dict name."""
    saved = module.state_dict().keys()
    live = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in live.items() if name in saved}
