"""The frozen reference policy of DPO, refreshed as a curriculum (Zhang et al. 2024, "OnlineVPO").

Every K optimizer steps the policy is copied to the reference, so that later steps are measured against the current
policy. For LoRA the reference is a second, frozen adapter. Its matrix B starts at zero, so the first reference equals
the base model. For full fine-tuning the reference is a frozen copy:

| `learner.reference` | placement of the copy | bytes on each of N GPUs |
|---|---|---|
| whole | on every rank's device | P b |
| sharded | sharded over the ranks, gathered layer by layer in a forward pass (ZeRO 3) | P b / N |
| host | in host memory; on the device only during its forward pass | 0; P b during the pass |

P parameters of b bytes. The reference's forward pass runs before the policy's activations exist, so with `host` the
temporary copy does not raise the memory peak of the step.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal

import torch

from common.config import LearnerConfig, LoraConfig
from common.models.cogvideox import compile_blocks
from common.models.lora import activate, adapter_parameters, inject_lora, using_adapter
from common.models.trainable import trained_names
from learner.engines.base import Engine

POLICY, REFERENCE = "policy", "reference"
CopyPlacement = Literal["whole", "sharded", "host"]


class Reference(ABC):
    """The frozen reference, and the live tensors of policy and reference.

    It must be built before the engine, which may shard the module.
    """

    kind: Literal["adapter", "full"]  # of published versions
    policy: Mapping[str, torch.Tensor]  # the policy's live tensors, by public name; frozen ones too in full training
    parameters: Mapping[str, torch.Tensor]  # the reference's live tensors, by the same names

    @abstractmethod
    def forward_context(self, engine: Engine) -> AbstractContextManager[torch.nn.Module]:
        """``with reference.forward_context(engine) as model``: `model` predicts as the reference, without gradients."""

    @abstractmethod
    def refresh(self, engine: Engine, policy_fraction: float = 1.0) -> None:
        """Reference <- (1 - f) reference + f policy, f = `policy_fraction`; 1 makes an exact copy. Collective."""

    def shard(self, engine: Engine) -> None:
        """Shard the reference if configured, once `engine` exists. Collective."""
        del engine

    @abstractmethod
    def compile(self) -> None:
        """Compile the reference's blocks, unless they belong to the policy's module."""

    def load(self, engine: Engine, state: Mapping[str, torch.Tensor]) -> None:
        """Load saved reference tensors. Collective."""
        engine.assign(self.parameters, state)


class AdapterReference(Reference):
    """For LoRA: the reference is a second adapter. Injects both adapters into the module."""

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

    def refresh(self, engine: Engine, policy_fraction: float = 1.0) -> None:
        both = [*self.policy.values(), *self.parameters.values()]
        with engine.gathered(both, change=True), torch.no_grad():
            for name, parameter in self.policy.items():
                self.parameters[name].copy_(_blend(self.parameters[name], parameter, policy_fraction))


class CopyReference(Reference):
    """For full fine-tuning: the reference is a frozen copy of the module."""

    kind = "full"

    def __init__(self, module: torch.nn.Module, placement: CopyPlacement = "whole") -> None:
        self._copy = copy.deepcopy(module).requires_grad_(False)
        self._placement = placement
        self._model = self._copy  # the module to call
        if placement == "host":
            _move(self._copy, "cpu")
        self.policy = module_tensors(module)
        self.parameters = module_tensors(self._copy)

    def shard(self, engine: Engine) -> None:
        """See `Reference.shard`."""
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

    def refresh(self, engine: Engine, policy_fraction: float = 1.0) -> None:
        for name, tensor in self.policy.items():
            with engine.gathered([tensor]):  # one at a time: DeepSpeed cannot nest gathers
                value = tensor.detach().clone()
            if policy_fraction < 1:
                with engine.gathered([self.parameters[name]]):
                    value = _blend(self.parameters[name].detach(), value, policy_fraction)
            engine.assign({name: self.parameters[name]}, {name: value})


class NoReference(Reference):
    """A policy without reference: LoRA adapters if `lora` is given, else the full module."""

    def __init__(self, module: torch.nn.Module, lora: LoraConfig | None, seed: int) -> None:
        self.kind = "full" if lora is None else "adapter"
        self.parameters = {}
        if lora is None:
            self.policy = module_tensors(module)
        else:
            inject_lora(module, lora, seed, POLICY)
            activate(module, POLICY, trainable=POLICY)
            self.policy = adapter_parameters(module, POLICY)

    def compile(self) -> None:
        """See `Reference.compile`: there are none."""

    def forward_context(self, engine: Engine) -> AbstractContextManager[torch.nn.Module]:
        raise RuntimeError("this algorithm has no reference")

    def refresh(self, engine: Engine, policy_fraction: float = 1.0) -> None:
        """See `Reference.refresh`. There is no reference."""


def make_reference(module: torch.nn.Module, config: LearnerConfig, seed: int, needed: bool) -> Reference:
    """Create the reference that the settings require; `NoReference` if it is not `needed`.

    In full training, the parameters that `learner.trainable` does not match are frozen. Raises `ConfigError` if one of
    its patterns matches none.
    """
    lora = config.lora if config.train == "lora" else None
    if lora is None:
        _freeze_others(module, config.trainable)
    if not needed:
        return NoReference(module, lora, seed)
    return CopyReference(module, config.reference) if lora is None else AdapterReference(module, lora, seed)


def _freeze_others(module: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Make only the parameters that match `patterns` trainable."""
    parameters = dict(module.named_parameters())
    chosen = trained_names(parameters, patterns)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)


def _blend(reference: torch.Tensor, policy: torch.Tensor, policy_fraction: float) -> torch.Tensor:
    """(1 - f) reference + f policy with f = `policy_fraction`, computed in float32."""
    if policy_fraction == 1:
        return policy
    policy = policy.to(reference.device)
    if not reference.is_floating_point():
        return policy
    return torch.lerp(reference.float(), policy.float(), policy_fraction).to(reference.dtype)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _move(module: torch.nn.Module, device: str) -> None:
    """Move parameters and buffers to `device` in place; tensors moved from a GPU get pinned memory."""
    for tensor in _tensors(module):
        moved = tensor.data.to(device)
        tensor.data = moved.pin_memory() if tensor.is_cuda else moved


@contextmanager
def _on_device(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Replace the tensors of `module` by copies on `device` for the block. Changes to the copies are lost."""
    originals = [(tensor, tensor.data) for tensor in _tensors(module)]
    for tensor, data in originals:
        tensor.data = data.to(device, non_blocking=True, copy=True)
    try:
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data


def module_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The live tensors of a full version: all parameters and persistent buffers, by state_dict name."""
    saved = module.state_dict().keys()
    live = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in live.items() if name in saved}
