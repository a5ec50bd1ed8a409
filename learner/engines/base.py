"""The interface of a training engine: optimizer steps, gathering and assigning sharded weights, optimizer state.

| engine | file | for |
|---|---|---|
| `SingleEngine` | `learner/engines/single.py` | one rank, ZeRO stage 0: torch alone |
| `ZeroEngine` | `learner/engines/zero.py` | several ranks, or ZeRO 1-3: DeepSpeed |

Both update float32 master weights with the optimizer of `learner/optimizer.py`. All ranks must call the methods marked
*collective*, in the same order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

from common.config import LearnerConfig
from common.errors import ConfigError
from common.weights.tensor_file import TensorStream, described, file_order
from learner.optimizer import restore, saved_state

BUCKET_BYTES = 256 * 2**20  # size of the parameters gathered at once

Result = TypeVar("Result")


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite; training cannot continue."""


class RankFailedError(RuntimeError):
    """Another rank failed; its own error has the reason."""


class Engine(ABC):
    """Trains the trainable parameters of `module` on rank `rank` of `world`. The constructor is collective.

    Each rank trains `per_rank` pairs per step, in micro-batches of at most `config.micro_batch` pairs. Raises
    `ConfigError` if `learner.batch_size` is not divisible by the number of ranks.
    """

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, device: str, rank: int, world: int) -> None:
        check_divisible(config, world)
        self.module, self.rank, self.world = module, rank, world
        self.device = torch.device(device)
        self._config = config

    @property
    def per_rank(self) -> int:
        """Pairs per rank and optimizer step."""
        return self._config.batch_size // self.world

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rank and optimizer step."""
        return math.ceil(self.per_rank / self._config.micro_batch)

    @property
    @abstractmethod
    def model(self) -> torch.nn.Module:
        """The module to call for a forward pass; with ZeRO, the DeepSpeed wrapper."""

    # One optimizer step.

    @abstractmethod
    def step(self, losses: Sequence[Callable[[], torch.Tensor]], lr: float) -> float:
        """Take one optimizer step at learning rate `lr`. Returns the gradient norm before clipping. Collective.

        `losses` has one function per micro-batch of this rank. Each runs a forward pass and returns its contribution to
        the mean loss of the global batch; the contributions of all ranks sum to that mean. Raises
        `NonFiniteLossError` if a loss or the gradient norm is not finite.
        """

    @abstractmethod
    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum of `values` over all ranks, on the engine's device. Collective."""

    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on at least one rank, so that all ranks take the same branch. Collective."""
        return bool(self.sum_over_ranks(torch.tensor([float(mine)])).item())

    def _refuse_non_finite(self, loss: torch.Tensor) -> None:
        """Raise `NonFiniteLossError` on all ranks if any rank has a non-finite loss, before the backward pass.
        Collective."""
        bad = int(self.sum_over_ranks((~torch.isfinite(loss)).float()).item())
        if bad:
            raise NonFiniteLossError(f"the loss is {loss.item()} on rank {self.rank}, not finite on {bad} rank(s)")

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """If the block raises on one rank, make all ranks raise, so that none waits for a failed one. Collective.

        Ranks whose own block succeeded raise `RankFailedError`. No rank leaves the block before all have finished it.
        """
        try:
            yield
        except RankFailedError:
            raise  # all ranks already know
        except Exception:
            self.any(True)
            raise
        self._check_others()

    def _check_others(self) -> None:
        if self.any(False):
            raise RankFailedError(f"rank {self.rank}: stopping because another rank failed; see the error of that rank")

    # Weights.

    def collect(self, tensors: Mapping[str, torch.Tensor], take: Callable[[TensorStream], Result]) -> Result | None:
        """Pass full copies of the module's own `tensors` as a stream to `take` on rank 0, and return its result.

        Tensors are gathered and copied to host memory bucket by bucket, so no rank ever holds more than one bucket. The
        other ranks return None. If `take` raises, all ranks raise. Collective.
        """
        layout = file_order(
            described(name, tensor, getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in tensors.items()
        )
        with self.agreed():
            parts = self._full_copies({entry.name: tensors[entry.name] for entry in layout})
            result = take(TensorStream(layout, parts)) if self.rank == 0 else None
            for _ in parts:  # other ranks must iterate too, to join the gathers
                pass
        return result

    def _full_copies(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield full copies on rank 0; the other ranks only join the collective operations."""
        for bucket in _buckets(tensors):
            self._check_others()  # whether rank 0 failed on the previous bucket
            full: dict[str, torch.Tensor] = {}
            with self.gathered(bucket.values()):
                if self.rank == 0:
                    full = {name: tensor.detach().to("cpu", copy=True) for name, tensor in bucket.items()}
            for name in bucket if full else ():
                yield name, full.pop(name)

    def assign(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        """Copy `values`, full and equal on all ranks, into the module's `tensors` of the same names. Collective."""
        for bucket in _buckets(tensors):
            with self.gathered(bucket.values(), change=True), torch.no_grad():
                for name, tensor in bucket.items():
                    tensor.copy_(values[name])

    @abstractmethod
    def gathered(self, tensors: Iterable[torch.Tensor], change: bool = False) -> AbstractContextManager[None]:
        """Gather sharded tensors for the block. With `change`, identical writes on all ranks are kept. Collective."""

    @abstractmethod
    def shard(self, module: torch.nn.Module) -> torch.nn.Module:
        """Shard the parameters of a frozen `module` over the ranks. Returns the module to call. Collective."""

    # The optimizer's state.

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer, without DeepSpeed's wrapper."""

    @abstractmethod
    def _masters(self) -> Sequence[torch.Tensor]:
        """The tensors that the optimizer updates on this rank."""

    @property
    @abstractmethod
    def _own_masters(self) -> bool:
        """Whether the master weights are separate tensors, not the module's parameters."""

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """This rank's shard of the optimizer state (moments, step counts) and the master weights, in host memory."""
        return saved_state(self.optimizer, self._masters(), self._own_masters)

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore `optimizer_state` of the same rank and number of ranks. Call `assign` for the weights first."""
        restore(self.optimizer, self._masters(), self._own_masters, state)

    @abstractmethod
    def close(self) -> None:
        """Release buffers and hooks."""


def check_divisible(config: LearnerConfig, world: int) -> None:
    """Raises `ConfigError` if a batch cannot be split evenly over `world` ranks."""
    if config.batch_size % world:
        raise ConfigError(f"learner.batch_size = {config.batch_size}: must be divisible by {world} ranks")


def _buckets(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Split `tensors`, in order, into buckets that end once their full size reaches BUCKET_BYTES."""
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        bucket[name] = tensor
        size += getattr(tensor, "ds_numel", tensor.numel()) * tensor.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = {}, 0
    if bucket:
        yield bucket
