"""What is read off a device: seconds and memory of the ways that are compared, and the operations it could do.

```
Way("ours")  ── round, round, round ──> seconds, the first left out; on a GPU: the most bytes that it alone held
Way("other") ── between them ─────────┘
operations of a clip, of an optimizer step (deploy/planning/plan.py) / seconds / the peak of the device ──> MFU
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
from deploy.planning.memory import GPUS, Gpu
from deploy.planning.model_sizes import ModelSizes
from deploy.planning.plan import draft

GB = 1e9
PEAK_SECONDS = 1.0
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # sides of the matrices whose product is timed

Thing = TypeVar("Thing")


def check_device(device: str) -> None:
    """`ConfigError` where torch has no such device."""
    count = torch.cuda.device_count()
    allowed = ["cpu", *(f"cuda:{index}" for index in range(count))]
    if device not in allowed:
        raise ConfigError(f"--device {device}: here are {', '.join(allowed)}")


def is_cuda(device: str) -> bool:
    """Whether it is a GPU."""
    return torch.device(device).type == "cuda"


def wait(device: str) -> None:
    """Until the device has done what was asked of it."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


class Way(Generic[Thing]):
    """One of the ways that are compared. They share the device: what the others hold is not counted.

    `make` builds it; `held` and `peak` are bytes on the GPU, now and at most; 0 on a CPU.
    """

    def __init__(self, device: str, make: Callable[[], Thing]) -> None:
        self.device, self.held, self.peak = device, 0, 0
        self._seconds: list[float] = []
        with self._counted():
            self.thing = make()

    def round(self, what: Callable[[Thing], object]) -> None:
        """Do it once; work on the device is waited for."""
        with self._counted():
            wait(self.device)
            began = time.perf_counter()
            what(self.thing)
            wait(self.device)
            self._seconds.append(time.perf_counter() - began)

    def rates(self, amount: float) -> list[float]:
        """`amount` per second of every round but the first, which warms up."""
        return [amount / taken for taken in self._seconds[1:]]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if not is_cuda(self.device):
            yield
            return
        gc.collect()  # what falls later would be taken for this way's
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        self.peak = max(self.peak, self.held + torch.cuda.max_memory_allocated(self.device) - before)
        self.held += torch.cuda.memory_allocated(self.device) - before


def memory_rows(ours: Way[Any], other: Way[Any]) -> list[Row]:
    """Peak memory of both on a GPU; nothing on a CPU."""
    if not is_cuda(ours.device):
        return []
    whole = torch.cuda.get_device_properties(ours.device).total_memory / GB
    mine, theirs = ours.peak / GB, other.peak / GB
    return [Row("peak memory of the GPU; limit: what it has", "GB", mine, theirs, whole, ratio([theirs], [mine]))]


# Operations.


def operations(sizes: ModelSizes, config: RunConfig) -> tuple[float, float]:
    """Floating-point operations that the model needs: (of one sampled clip, of one optimizer step).

    As `douga plan` counts them: what a device that does one a second would take. What is computed twice to save memory
    is not needed.
    """
    unit = Gpu("one operation a second", 1, 1e-12)
    default = LearnerConfig().gradient_checkpointing
    learner = config.learner.model_copy(update={"gradient_checkpointing": default})
    model = config.model.model_copy(update={"device": "cuda:0"})
    config = config.model_copy(update={"learner": learner, "model": model})
    pace = draft(config, sizes, dict.fromkeys(("sampler", "rewarder", "learner"), unit), 1.0).pace
    return pace.clip, pace.step


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
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
    """The GPU by its data sheet; None for a CPU, or one that `deploy.planning.memory` does not know."""
    if not is_cuda(device):
        return None
    name = torch.cuda.get_device_name(device).replace(" ", "")
    return next((gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in name), None)


def mfu_row(device: str, measured: float, needed: float, ours: Sequence[float], other: Sequence[float]) -> Row:
    """The share of the device's peak (`measured` operations a second where no data sheet is known) that the model's
    operations make use of, `needed` for each unit of the rates `ours` and `other`. The ratio is the MFU."""
    gpu = stated_peak(device)
    peak = measured / 1e12 if gpu is None else gpu.teraflops
    words = "a large matrix product" if gpu is None else f"{gpu.name}, data sheet"
    mine, theirs = ([needed * rate / 1e12 for rate in rates] for rates in (ours, other))
    case = f"operations that the model needs; limit: {words}; ratio: MFU"
    return Row(case, "TFLOP/s", median(mine), median(theirs), peak, ratio(mine, [peak] * len(mine)))


def mfu_aims(device: str, row: Row) -> list[Aim]:
    """On a GPU: how well it is used."""
    if not is_cuda(device) or row.ratio is None:
        return []
    return [Aim("MFU", row.ratio.median, ">= 0.45", row.ratio.median >= 0.45)]
