"""The engine for one rank: plain torch, without process group or DeepSpeed.

Master weights are float32. For a float32 model they are its parameters. For a bfloat16 model, and with
`learner.offload_optimizer`, they are copies:

```
 parameter (bfloat16, device) ──> forward, backward ──> gradient ──> added to master.grad (float32), then freed
        ▲                                                                  │  AdamW
        └───────────────────────── rounded ─────────────────── master, moments (device, or host memory)
```

Each gradient is added to its master during the backward pass, so the gradients of the whole model never exist at once,
and micro-batches accumulate in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from common.config import LearnerConfig
from learner.engines.base import Engine, NonFiniteLossError
from learner.optimizer import make_optimizer


class SingleEngine(Engine):
    """Single-rank engine; see the module docstring."""

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, device: str = "cpu") -> None:
        super().__init__(module, config, device, rank=0, world=1)
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._copies = [self._master_copy(one) for one in self._trained] if self._own_masters else self._trained
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_moves_gradient_to(master))
            for parameter, master in zip(self._trained, self._copies, strict=True)
            if parameter is not master
        ]
        self._optimizer = make_optimizer(self._copies, config)

    @property
    def model(self) -> torch.nn.Module:
        """See `Engine.model`."""
        return self.module

    @property
    def _own_masters(self) -> bool:
        half = any(parameter.dtype != torch.float32 for parameter in self._trained)
        return half or self._config.offload_optimizer

    def _master_copy(self, parameter: torch.Tensor) -> torch.Tensor:
        offload = self._config.offload_optimizer
        master = parameter.detach().to("cpu" if offload else parameter.device, torch.float32, copy=True)
        return master.pin_memory() if offload and parameter.is_cuda else master

    def step(self, losses: Sequence[Callable[[], torch.Tensor]], lr: float) -> float:
        """See `Engine.step`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        try:
            for loss_of in losses:
                loss = loss_of()
                self._refuse_non_finite(loss.detach())
                loss.backward()
            norm = self._clip()
            self._optimizer.step()
        finally:
            self._optimizer.zero_grad()
        self._copy_masters_to_model()
        return norm

    def _clip(self) -> float:
        """Clip the gradient to `learner.clip_norm`. Returns the norm before; raises `NonFiniteLossError`."""
        gradients = [master.grad for master in self._copies if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise NonFiniteLossError(f"the gradient's norm is {norm.item()}")
        torch.nn.utils.clip_grads_with_norm_(self._copies, self._config.clip_norm, norm)
        return norm.item()

    def _copy_masters_to_model(self) -> None:
        """Copy the masters to the model's parameters, rounded to their dtype."""
        with torch.no_grad():
            for parameter, master in zip(self._trained, self._copies, strict=True):
                if parameter is not master:
                    parameter.copy_(master, non_blocking=True)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """See `Engine.sum_over_ranks`."""
        return values.detach().clone().to(self.device)

    @contextmanager
    def gathered(self, tensors: Iterable[torch.Tensor], change: bool = False) -> Iterator[None]:
        """See `Engine.gathered`. One rank has no shards to gather."""
        del tensors, change
        yield

    def shard(self, module: torch.nn.Module) -> torch.nn.Module:
        """See `Engine.shard`. With one rank the module is returned unchanged."""
        return module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """See `Engine.optimizer`."""
        return self._optimizer

    def _masters(self) -> Sequence[torch.Tensor]:
        return self._copies

    def close(self) -> None:
        """See `Engine.close`."""
        for hook in self._hooks:
            hook.remove()


def _moves_gradient_to(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def move(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.to(master.device, torch.float32)
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return move
