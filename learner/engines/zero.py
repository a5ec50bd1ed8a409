"""The engine for several ranks, or for one with ZeRO 1-3: DeepSpeed. No other module uses DeepSpeed.

What each rank holds (Psi parameters, N ranks):

| ZeRO stage | parameters | gradients | optimizer state |
|---|---|---|---|
| 0 | all | all | all |
| 1 | all | all | 1/N |
| 2 | all | 1/N | 1/N |
| 3 | 1/N | 1/N | 1/N |

The optimizer comes from `learner/optimizer.py`, so DeepSpeed compiles nothing at startup. With
`learner.offload_optimizer`, its state is in host memory and the update runs on the CPU. bfloat16 models keep float32
master weights and run stage 0 as stage 1, because DeepSpeed's stage-0 optimizer for bfloat16 starts with an update of
zero gradients, which decays AdamW's moments.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]

from common.config import LearnerConfig
from common.errors import ConfigError
from learner.engines.base import Engine, NonFiniteLossError
from learner.optimizer import make_optimizer

LINEAR = torch.nn.functional.linear  # DeepSpeed's stage 3 replaces it for the whole process
REDUCE_BUCKET = 5 * 10**8  # elements; gradients reduced at once
SHARD_FROM = 1000  # elements; stage 3 does not shard smaller parameters (norms, biases)


def join_group(rank: int = 0, world: int = 1, init_method: str | None = None, device: str = "cpu") -> None:
    """Join the process group as rank `rank` of `world`; no effect if the process is already in a group.

    Several ranks need an `init_method` (``file:///shared/path``, ``tcp://host:port``), else it raises `ConfigError`. A
    single rank opens no port.
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


def check_deepspeed() -> None:
    """Raises `ConfigError` if DeepSpeed is not installed. Imports nothing."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "learner.zero_stage, and cluster.learner.count above 1, need the package deepspeed, which is not "
            "installed: pip install 'douga[deepspeed]'"
        )


def check_offload(config: LearnerConfig, half: bool) -> None:
    """Raises `ConfigError` if the optimizer is to be offloaded at stage 0. A bfloat16 (`half`) model is never at it."""
    if config.offload_optimizer and not (config.zero_stage or half):
        raise ConfigError("learner.offload_optimizer: several ranks need learner.zero_stage 1, 2 or 3")


class ZeroEngine(Engine):
    """DeepSpeed engine; see the module docstring. With several ranks, call `join_group` on each of them first."""

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, device: str = "cpu") -> None:
        join_group(device=device)
        super().__init__(module, config, device, distributed.get_rank(), distributed.get_world_size())
        self._deepspeed = _import_deepspeed(device)
        self._half = next(module.parameters()).dtype == torch.bfloat16
        self.stage = max(config.zero_stage, 1) if self._half else config.zero_stage
        check_offload(config, self._half)
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._engine, *_ = self._deepspeed.initialize(
            model=module, optimizer=make_optimizer(trainable, config), config=self._settings()
        )
        self._sharded: list[Any] = []

    @property
    def model(self) -> torch.nn.Module:
        """See `Engine.model`."""
        return self._engine

    def _settings(self) -> dict[str, Any]:
        offload = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        trained = sum(getattr(p, "ds_numel", p.numel()) for p in self.module.parameters() if p.requires_grad)
        zero = {
            "stage": self.stage,
            "stage3_param_persistence_threshold": SHARD_FROM,
            "reduce_bucket_size": min(REDUCE_BUCKET, trained),  # DeepSpeed allocates the full bucket
        }
        return {
            "train_micro_batch_size_per_gpu": self._config.micro_batch,
            "gradient_accumulation_steps": self.micro_batches,
            "gradient_clipping": self._config.clip_norm,
            "bf16": {"enabled": self._half},
            "zero_optimization": zero | ({"offload_optimizer": offload} if self._config.offload_optimizer else {}),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }

    def step(self, losses: Sequence[Callable[[], torch.Tensor]], lr: float) -> float:
        """See `Engine.step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for loss_of in losses:
            loss = loss_of()
            self._refuse_non_finite(loss.detach())
            # DeepSpeed averages gradients over ranks, but the contributions must be summed.
            self._engine.backward(loss * self.world, scale_wrt_gas=False)
            norm = self._local_norm() if loss_of is losses[-1] else math.nan
            self._engine.step()
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm())
            if not math.isfinite(norm) or not self._engine.was_step_applied():
                raise NonFiniteLossError(f"the gradient's norm is {norm}")
        return norm

    def _local_norm(self) -> float:
        """The norm of the reduced gradient at stage 0; NaN at other stages.

        Raises `NonFiniteLossError` before the update.
        """
        if self.stage > 0:
            return math.nan
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"the gradient's norm is {norm}")
        return norm

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """See `Engine.sum_over_ranks`."""
        total = values.detach().clone().to(self.device)
        distributed.all_reduce(total)
        return total

    @contextmanager
    def gathered(self, tensors: Iterable[torch.Tensor], change: bool = False) -> Iterator[None]:
        """See `Engine.gathered`."""
        sharded = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
        if not sharded:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if change else None):
            yield

    def shard(self, module: torch.nn.Module) -> torch.nn.Module:
        """See `Engine.shard`. Uses ZeRO 3 without an optimizer."""
        zero = {"stage": 3, "stage3_param_persistence_threshold": SHARD_FROM}
        settings = {
            "train_micro_batch_size_per_gpu": self._config.micro_batch,
            "bf16": {"enabled": self._half},
            "zero_optimization": zero,
            "steps_per_print": None,
        }
        engine, *_ = self._deepspeed.initialize(model=module, config=settings)
        self._sharded.append(engine)
        return engine

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """See `Engine.optimizer`. Stage 0 has no wrapper."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    @property
    def _own_masters(self) -> bool:
        return self.stage > 0

    def _masters(self) -> Sequence[torch.Tensor]:
        """Flat float32 shards; at stage 0 the parameters."""
        if self.stage == 0:
            return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        wrapper: Any = self._engine.optimizer
        return list(
            wrapper.fp32_partitioned_groups_flat if self.stage == 3 else wrapper.single_partition_of_fp32_groups
        )

    def close(self) -> None:
        """See `Engine.close`. The process group stays open, because DeepSpeed keeps one per process."""
        for engine in (*self._sharded, self._engine):
            engine.destroy()
        torch.nn.functional.linear = LINEAR
        gc.collect()


def _import_deepspeed(device: str) -> Any:
    """Import DeepSpeed with its logs silenced and its detection of accelerator and local ranks overridden."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_SIZE", str(distributed.get_world_size()))
    check_deepspeed()
    import deepspeed  # noqa: PLC0415 - reads the environment when imported

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if device == "cpu":
        _force_cpu(deepspeed)
    return deepspeed


def _force_cpu(deepspeed: Any) -> None:
    """Make DeepSpeed use the CPU, even if an earlier import has selected a GPU."""
    from deepspeed.accelerator import get_accelerator, set_accelerator  # noqa: PLC0415
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator  # noqa: PLC0415

    found: Any = get_accelerator()
    if found.device_name() != "cpu":
        set_accelerator(CPU_Accelerator())
    # Without this, DeepSpeed would compile its shared-memory collectives (C++), which takes half a minute.
    deepspeed.ops.__compatible_ops__ = {}
