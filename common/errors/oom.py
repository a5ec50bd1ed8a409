"""Recognises out-of-memory errors of any library, on the GPU and on the host. Imports no torch at import time.

```
torch.OutOfMemoryError, "DefaultCPUAllocator: can't allocate memory", MemoryError, ENOMEM ──shortage()──> Shortage
```

`deploy/runtime/oom.py` turns a `Shortage` into the one-line message that ends a run.
"""

from __future__ import annotations

import errno
import re
import resource
from contextlib import suppress
from dataclasses import dataclass

import psutil

from common.errors import RunFailed

UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
AMOUNT = rf"(\d+(?:\.\d*)?) ({'|'.join(UNITS)})"
REQUESTED = re.compile(rf"(?:allocate|mmap) {AMOUNT}")
GPU_MEMORY = re.compile(rf"GPU (\d+) has a total capacity of {AMOUNT} of which {AMOUNT} is free")
# Messages of torch's host allocator, the CUDA runtime, cuBLAS and cuDNN, C++, oneDNN.
OOM_MESSAGES = re.compile(
    r"can't allocate memory|Cannot allocate memory|out of memory|STATUS_ALLOC_FAILED|bad_alloc"
    r"|could not create a (memory|primitive)$"
)


@dataclass(frozen=True, slots=True)
class Shortage:
    """Memory figures at an out-of-memory error, in bytes; None if unknown."""

    where: str  # "GPU 0", "the host's memory"
    asked: int | None  # size of the allocation that failed
    free: int | None
    total: int | None


def is_shortage(error: BaseException) -> bool:
    """Whether this is an out-of-memory error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RunFailed):  # it quotes another error
        return False
    return isinstance(error, RuntimeError) and OOM_MESSAGES.search(str(error)) is not None


def reraise_oom(error: Exception) -> None:
    """Raise `error` again if it is an out-of-memory error. For callers that would report it as broken input."""
    if is_shortage(error):
        raise error


def shortage(error: Exception) -> Shortage | None:
    """Memory figures at an out-of-memory error; None for any other error."""
    if not is_shortage(error):
        return None
    message = str(error)
    asked = REQUESTED.search(message)
    on_gpu = type(error).__name__ == "OutOfMemoryError" or re.search(r"CUDA|CUBLAS|CUDNN|GPU", message)
    where, free, total = _gpu(message) if on_gpu else _host()
    return Shortage(where, _bytes(*asked.groups()) if asked else None, free, total)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def _gpu(message: str) -> tuple[str, int | None, int | None]:
    """Returns where, free, total: from the message if it has them, otherwise the present values."""
    match = GPU_MEMORY.search(message)
    if match:
        return f"GPU {match[1]}", _bytes(match[4], match[5]), _bytes(match[2], match[3])
    import torch  # noqa: PLC0415 - a process that runs out of GPU memory has imported it already

    with suppress(RuntimeError, AssertionError):  # the query itself may run out of memory, or there is no driver
        return "the GPU", *torch.cuda.mem_get_info()
    return "the GPU", None, None


def _host() -> tuple[str, int, int]:
    """Returns where, free, total: of the machine, or of this process if `ulimit -v` is the tighter limit."""
    machine = psutil.virtual_memory()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    left = limit - psutil.Process().memory_info().vms
    if limit != resource.RLIM_INFINITY and left < machine.available:
        return "this process's memory limit (ulimit -v)", max(0, left), limit
    return "the host's memory", machine.available, machine.total
