"""The optimizer's side of a model, behind a small interface: one optimizer step, and weights whole or by the bucket.

| engine | file | for |
|---|---|---|
| `SingleEngine` | `learner/engines/single.py` | one rank, ZeRO stage 0: torch alone |
| `ZeroEngine` | `learner/engines/zero.py` | several ranks, or ZeRO 1-3: DeepSpeed |

Both train float32 masters with the optimizer of `learner/optimizer.py`. Every method marked *collective* is called by
all ranks, in the same order.
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

BUCKET_BYTES = 256 * 2**20  # of parameters gathered together

Taken = TypeVar("Taken")


class NonFinite(RuntimeError):
    """A loss or gradient is NaN or infinite: nothing good can follow."""


class RankFailed(RuntimeError):
    """Another rank gave up; it says why."""


class Engine(ABC):
    """`module`'s trainable parameters under an optimizer, on rank `rank` of `world`. Collective to build.

    A rank trains `per_rank` pairs per step, in micro-batches of at most `config.micro_batch`.
    """

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, device: str, rank: int, world: int) -> None:
        if config.pairs_per_step % world:
            raise ConfigError(f"learner.pairs_per_step = {config.pairs_per_step}: must divide by {world} ranks")
        self.module, self.rank, self.world = module, rank, world
        self.device = torch.device(device)
        self._config = config

    @property
    def per_rank(self) -> int:
        """Pairs that this rank trains per optimizer step."""
        return self._config.pairs_per_step // self.world

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of this rank per optimizer step."""
        return math.ceil(self.per_rank / self._config.micro_batch)

    @property
    @abstractmethod
    def model(self) -> torch.nn.Module:
        """What to call for a forward pass: the module, with ZeRO around it where there is ZeRO."""

    # One optimizer step.

    @abstractmethod
    def step(self, losses: Sequence[Callable[[], torch.Tensor]], lr: float) -> float:
        """One update at learning rate `lr` from this rank's micro-batches; the gradient's norm before clipping.

        Each of `losses` (`micro_batches` of them) runs a forward pass and returns its share of the global batch's mean
        loss; all ranks' shares sum up to that mean. Raises `NonFinite`. Collective.
        """

    @abstractmethod
    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of every rank's `values`. Collective."""

    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on at least one rank: what makes all ranks decide alike. Collective."""
        return bool(self.sum_over_ranks(torch.tensor([float(mine)])).item())

    def _refuse_non_finite(self, loss: torch.Tensor) -> None:
        """All ranks stop together, before the loss reaches any weight."""
        bad = int(self.sum_over_ranks((~torch.isfinite(loss)).float()).item())
        if bad:
            raise NonFinite(f"the loss is {loss.item()} on rank {self.rank}, not finite on {bad} rank(s)")

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails within the block on one rank fails on all: nobody waits for one who has given up. Collective.

        Ranks that have not failed themselves raise `RankFailed`. None leaves before all are through.
        """
        try:
            yield
        except RankFailed:
            raise  # all know of it
        except Exception:
            self.any(True)
            raise
        self._check_others()

    def _check_others(self) -> None:
        if self.any(False):
            raise RankFailed(f"rank {self.rank}: stops, since another rank failed; it says why")

    # Weights.

    def collect(self, tensors: Mapping[str, torch.Tensor], take: Callable[[TensorStream], Taken]) -> Taken | None:
        """What `take` makes, on rank 0, of whole copies of the module's own `tensors`, which come one after the other.

        They are gathered and brought to host memory by the bucket; no rank ever holds more. Other ranks get None. When
        `take` fails, all ranks do. Collective.
        """
        layout = file_order(
            described(name, tensor, getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in tensors.items()
        )
        with self.agreed():
            parts = self._gathered({entry.name: tensors[entry.name] for entry in layout})
            taken = take(TensorStream(layout, parts)) if self.rank == 0 else None
            for _ in parts:  # what the other ranks have to do: take part
                pass
        return taken

    def _gathered(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """On rank 0 the whole copies; other ranks only go along."""
        for bucket in _buckets(tensors):
            self._check_others()  # whether rank 0 could take the bucket before
            whole: dict[str, torch.Tensor] = {}
            with self.whole(bucket.values()):
                if self.rank == 0:
                    whole = {name: tensor.detach().to("cpu", copy=True) for name, tensor in bucket.items()}
            for name in bucket if whole else ():
                yield name, whole.pop(name)

    def assign(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        """Copy `values` (whole, the same on every rank) into the module's own tensors of these names. Collective."""
        for bucket in _buckets(tensors):
            with self.whole(bucket.values(), change=True), torch.no_grad():
                for name, tensor in bucket.items():
                    tensor.copy_(values[name])

    @abstractmethod
    def whole(self, tensors: Iterable[torch.Tensor], change: bool = False) -> AbstractContextManager[None]:
        """Within the block these tensors are whole on every rank; changes made on all ranks alike stay. Collective."""

    @abstractmethod
    def shard(self, module: torch.nn.Module) -> torch.nn.Module:
        """What to call for a forward pass of frozen `module`, whose parameters become shares. Collective."""

    # The optimizer's state.

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer, whatever stands around it."""

    @abstractmethod
    def _masters(self) -> Sequence[torch.Tensor]:
        """The tensors that the optimizer updates on this rank."""

    @property
    @abstractmethod
    def _own_masters(self) -> bool:
        """Whether masters are other tensors than the module's parameters."""

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """The optimizer's moments and step counts, and the master weights, of this rank's shard."""
        return saved_state(self.optimizer, self._masters(), self._own_masters)

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `optimizer_state` gave on the same rank of as many ranks; after `assign` of the weights."""
        restore(self.optimizer, self._masters(), self._own_masters, state)

    @abstractmethod
    def close(self) -> None:
        """Release buffers and hooks."""


def _buckets(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """`tensors` in their order, cut where a bucket's whole size passes BUCKET_BYTES."""
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
