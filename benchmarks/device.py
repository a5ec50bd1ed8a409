"""Measures time and memory of implementations on a device, and how well they use it (MFU).

```
Variant("ours")  ── round, round, round ──> seconds without the first; on a GPU: peak bytes held by it alone
Variant("other") ── alternating rounds ───┘
operations of a clip or an optimizer step (deploy/planning/plan.py) / seconds / peak of the device ──> MFU
```
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Generic, TypeVar

import torch

from benchmarks.harness import Aim, Row, ratio
from common.config import LearnerConfig, RunConfig
from common.errors import ConfigError
from deploy.planning.memory import Gpu, gpu_of
from deploy.planning.model_sizes import ModelSizes
from deploy.planning.plan import draft

GB = 1e9
PEAK_SECONDS = 1.0
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # side of the square matrices that are multiplied

Subject = TypeVar("Subject")


def check_device(device: str) -> None:
    """Raise `ConfigError` if torch has no such device."""
    count = torch.cuda.device_count()
    allowed = ["cpu", *(f"cuda:{index}" for index in range(count))]
    if device not in allowed:
        raise ConfigError(f"--device {device}: this machine has {', '.join(allowed)}")


def is_cuda(device: str) -> bool:
    """Whether it is a GPU."""
    return torch.device(device).type == "cuda"


def wait(device: str) -> None:
    """Wait until the device has finished all work."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


class Variant(Generic[Subject]):
    """One of the implementations that are compared. They share the device; each one's own memory is counted.

    `make` builds the subject. `held` and `peak` are its bytes on the GPU, at present and at most; 0 on a CPU.
    """

    def __init__(self, device: str, make: Callable[[], Subject]) -> None:
        self.device, self.held, self.peak = device, 0, 0
        self._seconds: list[float] = []
        with self._measuring_memory():
            self.subject = make()

    def round(self, what: Callable[[Subject], object]) -> None:
        """Run `what` once and measure it, including the device's work."""
        with self._measuring_memory():
            wait(self.device)
            began = time.perf_counter()
            what(self.subject)
            wait(self.device)
            self._seconds.append(time.perf_counter() - began)

    def rates(self, amount: float) -> list[float]:
        """`amount` per second, for each round except the first, which is the warm-up."""
        return [amount / taken for taken in self._seconds[1:]]

    @contextmanager
    def _measuring_memory(self) -> Iterator[None]:
        if not is_cuda(self.device):
            yield
            return
        gc.collect()  # otherwise garbage of another variant could be freed inside and count as this one's
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        self.peak = max(self.peak, self.held + torch.cuda.max_memory_allocated(self.device) - before)
        self.held += torch.cuda.memory_allocated(self.device) - before


def memory_rows(ours: Variant[Any], other: Variant[Any]) -> list[Row]:
    """Peak memory of both variants on a GPU; no rows on a CPU."""
    if not is_cuda(ours.device):
        return []
    whole = torch.cuda.get_device_properties(ours.device).total_memory / GB
    mine, theirs = ours.peak / GB, other.peak / GB
    return [Row("peak memory of the GPU; limit: what it has", "GB", mine, theirs, whole, ratio([theirs], [mine]))]


# Operations.


def operations(sizes: ModelSizes, config: RunConfig) -> tuple[float, float]:
    """Floating-point operations that the model needs. Returns (per sampled clip, per optimizer step).

    They come from `douga plan`, as the seconds on a device with one operation per second. Recomputation of activations
    does not count.
    """
    unit = Gpu("one operation a second", 1, 1e-12)
    default = LearnerConfig().gradient_checkpointing
    learner = config.learner.model_copy(update={"gradient_checkpointing": default})
    model = config.model.model_copy(update={"device": "cuda:0"})
    config = config.model_copy(update={"learner": learner, "model": model})
    pace = draft(config, sizes, dict.fromkeys(("sampler", "rewarder", "learner"), unit), 1.0).pace
    return pace.clip, pace.step


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Measured operations per second of a large matrix product."""
    size = PEAK_SIZE[torch.device(device).type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    wait(device)
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + PEAK_SECONDS:
        torch.mm(left, right)
        wait(device)
        done += 2 * size**3
    return done / (time.perf_counter() - began)


def stated_peak(device: str) -> Gpu | None:
    """The GPU's data sheet; None for a CPU, or for a GPU that `deploy.planning.memory` does not list."""
    if not is_cuda(device):
        return None
    return gpu_of(torch.cuda.get_device_name(device))


def mfu_row(device: str, measured: float, needed: float, ours: Sequence[float], other: Sequence[float]) -> Row:
    """Model FLOPs utilization (MFU): the fraction of the device's peak that the model's operations achieve.

    `needed` is the number of operations per unit of the rates `ours` and `other`. The peak is the data sheet's, or
    `measured` if there is none. The row's ratio is the MFU.
    """
    gpu = stated_peak(device)
    peak = measured / 1e12 if gpu is None else gpu.teraflops
    limit = "a large matrix product" if gpu is None else f"{gpu.name}, data sheet"
    mine, theirs = ([needed * rate / 1e12 for rate in rates] for rates in (ours, other))
    case = f"operations that the model needs; limit: {limit}; ratio: MFU"
    return Row(case, "TFLOP/s", median(mine), median(theirs), peak, ratio(mine, [peak] * len(mine)))


def mfu_aims(device: str, row: Row) -> list[Aim]:
    """On a GPU, the target for the MFU; none on a CPU."""
    if not is_cuda(device) or row.ratio is None:
        return []
    return [Aim("MFU", row.ratio.median, ">= 0.45", row.ratio.median >= 0.45)]
