"""The optimizer's side of a model: DeepSpeed ZeRO 0-3 behind a small interface. Only this file knows DeepSpeed.

What each rank holds (Psi parameters, N ranks):

| ZeRO stage | parameters | gradients | optimizer state |
|---|---|---|---|
| 0 | all | all | all |
| 1 | all | all | 1/N |
| 2 | all | 1/N | 1/N |
| 3 | 1/N | 1/N | 1/N |

Every method marked *collective* is called by all ranks, in the same order. The optimizer is torch's AdamW, so nothing
is compiled at start. bfloat16 models keep float32 master weights; DeepSpeed's stage-0 optimizer for bfloat16 starts
with an update of zero gradients, which ages AdamW's moments, so bfloat16 runs stage 0 as stage 1.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]

from common.config import ConfigError, LearnerConfig
from common.tensor_file import TensorStream, described, file_order

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before anything imports DeepSpeed: diffusers does, for one

BUCKET_BYTES = 256 * 2**20  # of parameters gathered together
WHOLE_BELOW = 1000  # elements: smaller parameters (norms, biases) stay whole on every rank at stage 3
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state per tensor

Taken = TypeVar("Taken")


def join_group(rank: int = 0, world: int = 1, init_method: str | None = None, device: str = "cpu") -> None:
    """Make this process rank `rank` of `world` learner ranks; nothing when it already is in a group.

    Several ranks meet at `init_method` (``file:///shared/path``, ``tcp://host:port``); one alone opens no port.
    """
    if distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    if world == 1:
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    elif init_method is None:
        raise ConfigError(f"a learner of {world} ranks needs an init_method, e.g. file:///shared/rendezvous")
    else:
        distributed.init_process_group(backend, init_method=init_method, rank=rank, world_size=world)


class NonFinite(RuntimeError):
    """A loss or gradient is NaN or infinite: nothing good can follow."""


class RankFailed(RuntimeError):
    """Another rank gave up; it says why."""


class Engine:
    """`module`'s trainable parameters under AdamW and ZeRO. Collective to build. Needs `join_group` first.

    A rank trains `per_rank` pairs per step, in micro-batches of at most `config.micro_batch`.
    """

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, device: str = "cpu") -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        if config.pairs_per_step % self.world:
            raise ConfigError(f"learner.pairs_per_step = {config.pairs_per_step}: must divide by {self.world} ranks")
        self.module = module
        self.device = torch.device(device)
        self._config = config
        self._deepspeed = _import_deepspeed(device)
        half = next(module.parameters()).dtype == torch.bfloat16
        self.stage = max(config.zero_stage, 1) if half else config.zero_stage
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        adamw = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
        self._engine, *_ = self._deepspeed.initialize(
            model=module, optimizer=adamw, config=self._deepspeed_config(half)
        )

    @property
    def per_rank(self) -> int:
        """Pairs that this rank trains per optimizer step."""
        return self._config.pairs_per_step // self.world

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of this rank per optimizer step."""
        return math.ceil(self.per_rank / self._config.micro_batch)

    @property
    def model(self) -> torch.nn.Module:
        """What to call for a forward pass: the module with ZeRO around it."""
        return self._engine

    def _deepspeed_config(self, half: bool) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": self._config.micro_batch,
            "gradient_accumulation_steps": self.micro_batches,
            "gradient_clipping": self._config.clip_norm,
            "bf16": {"enabled": half},
            "zero_optimization": {"stage": self.stage, "stage3_param_persistence_threshold": WHOLE_BELOW},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }

    # One optimizer step.

    def step(self, losses: Sequence[Callable[[], torch.Tensor]], lr: float) -> float:
        """One AdamW update at learning rate `lr` from this rank's micro-batches; the gradient's norm before clipping.

        Each of `losses` (`micro_batches` of them) runs a forward pass and returns its share of the global batch's mean
        loss; all ranks' shares sum up to that mean. Raises `NonFinite`. Collective.
        """
        for group in self._adamw.param_groups:
            group["lr"] = lr
        for loss_of in losses:
            loss = loss_of()
            self._refuse_non_finite(loss.detach())
            # DeepSpeed averages gradients over ranks; the shares are to be summed.
            self._engine.backward(loss * self.world, scale_wrt_gas=False)
            norm = self._local_norm() if loss_of is losses[-1] else math.nan
            self._engine.step()
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm())
            if not math.isfinite(norm) or not self._engine.was_step_applied():
                raise NonFinite(f"the gradient's norm is {norm}")
        return norm

    def _refuse_non_finite(self, loss: torch.Tensor) -> None:
        """All ranks stop together, before the loss reaches any weight."""
        bad = (~torch.isfinite(loss)).float().to(self.device)
        distributed.all_reduce(bad)
        if bad.item():
            raise NonFinite(f"the loss is {loss.item()} on rank {self.rank}, not finite on {int(bad.item())} rank(s)")

    def _local_norm(self) -> float:
        """The norm of stage 0's whole gradient, reduced over ranks by now; refuses it before it is applied."""
        if self.stage > 0:
            return math.nan
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient's norm is {norm}")
        return norm

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of every rank's `values`. Collective."""
        total = values.detach().clone().to(self.device)
        distributed.all_reduce(total)
        return total

    def any(self, mine: bool) -> bool:
        """Whether `mine` is true on at least one rank: what makes all ranks decide alike. Collective."""
        return bool(self.sum_over_ranks(torch.tensor([float(mine)])).item())

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

    @contextmanager
    def whole(self, tensors: Iterable[torch.Tensor], change: bool = False) -> Iterator[None]:
        """Within the block these tensors are whole on every rank; changes made on all ranks alike stay. Collective."""
        sharded = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
        if not sharded:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if change else None):
            yield

    # The optimizer's state.

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        """torch's AdamW under DeepSpeed's wrapper (stage 0 has none)."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _masters(self) -> list[torch.Tensor]:
        """The tensors that AdamW updates on this rank: flat float32 shards, at stage 0 the parameters themselves."""
        if self.stage == 0:
            return [parameter for group in self._adamw.param_groups for parameter in group["params"]]
        optimizer: Any = self._engine.optimizer
        return list(
            optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        )

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """AdamW's moments and step counts, and the master weights, of this rank's shard."""
        state: dict[str, torch.Tensor] = {}
        for index, master in enumerate(self._masters()):
            state |= {f"{index}.{name}": value for name, value in self._adamw.state.get(master, {}).items()}
            if self.stage > 0:
                state[f"{index}.master"] = master
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `optimizer_state` gave on the same rank of as many ranks; after `assign` of the weights."""
        for index, master in enumerate(self._masters()):
            own = {name: state[f"{index}.{name}"] for name in MOMENTS if f"{index}.{name}" in state}
            self._adamw.state[master] = {
                name: value.clone() if name == "step" else value.to(master, copy=True) for name, value in own.items()
            }
            if self.stage > 0:
                with torch.no_grad():
                    master.copy_(state[f"{index}.master"])

    def close(self) -> None:
        """Release DeepSpeed's buffers and hooks. The process group stays: DeepSpeed keeps one per process."""
        self._engine.destroy()
        gc.collect()


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


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, quiet, and told what it would otherwise detect: the accelerator and this host's ranks."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_SIZE", str(distributed.get_world_size()))
    import deepspeed  # noqa: PLC0415 - reads the environment when imported

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if device == "cpu":
        _keep_to_cpu(deepspeed)
    return deepspeed


def _keep_to_cpu(deepspeed: Any) -> None:
    """The model is on the CPU: so is DeepSpeed, even where it was imported before and has found a GPU."""
    from deepspeed.accelerator import get_accelerator, set_accelerator  # noqa: PLC0415
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator  # noqa: PLC0415

    found: Any = get_accelerator()
    if found.device_name() != "cpu":
        set_accelerator(CPU_Accelerator())
    # No operator counts as available: DeepSpeed would compile its shared-memory collectives, half a minute of C++.
    deepspeed.ops.__compatible_ops__ = {}
