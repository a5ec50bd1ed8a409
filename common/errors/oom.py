"""When there is too little memory: told from all other errors, whichever library says so. Imports no torch by itself.

```
torch.OutOfMemoryError, "DefaultCPUAllocator: can't allocate memory", MemoryError, ENOMEM ──shortage()──> Shortage
```

`deploy/runtime/oom.py` makes the one line of it that ends a run.
"""

from __future__ import annotations

import errno
import re
import resource
from contextlib import suppress
from dataclasses import dataclass

import psutil

UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
AMOUNT = rf"(\d+(?:\.\d+)?) ({'|'.join(UNITS)})"
ASKED = re.compile(rf"(?:allocate|mmap) {AMOUNT}")
OF_GPU = re.compile(rf"GPU (\d+) has a total capacity of {AMOUNT} of which {AMOUNT} is free")
# torch's host allocator, the CUDA runtime, cuBLAS and cuDNN, C++, oneDNN: each has words of its own.
SIGNS = re.compile(
    r"can't allocate memory|Cannot allocate memory|out of memory|STATUS_ALLOC_FAILED|bad_alloc"
    r"|could not create a (memory|primitive)$"
)


@dataclass(frozen=True, slots=True)
class Shortage:
    """What an error says about memory, in bytes; None where nobody can say it."""

    where: str  # whose: "GPU 0", "the host's memory"
    asked: int | None
    free: int | None
    total: int | None


def is_shortage(error: BaseException) -> bool:
    """Whether it is memory that was missing."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and SIGNS.search(str(error)) is not None


def pass_on(error: Exception) -> None:
    """Raise `error` if it is about memory: for those who would call it broken input."""
    if is_shortage(error):
        raise error


def shortage(error: Exception) -> Shortage | None:
    """What an error says about memory, and what there is now; None when it is about something else."""
    if not is_shortage(error):
        return None
    words = str(error)
    asked = ASKED.search(words)
    on_gpu = type(error).__name__ == "OutOfMemoryError" or re.search(r"CUDA|CUBLAS|CUDNN|GPU", words)
    where, free, total = _gpu(words) if on_gpu else _host()
    return Shortage(where, _bytes(*asked.groups()) if asked else None, free, total)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def _gpu(words: str) -> tuple[str, int | None, int | None]:
    """Where, free, total: as torch found them when it failed; of errors that do not say it, as they are now."""
    told = OF_GPU.search(words)
    if told:
        return f"GPU {told[1]}", _bytes(told[4], told[5]), _bytes(told[2], told[3])
    import torch  # noqa: PLC0415 - who runs out of a GPU's memory has it

    with suppress(RuntimeError, AssertionError):  # it may lack the memory to tell, or there is no driver
        return "the GPU", *torch.cuda.mem_get_info()
    return "the GPU", None, None


def _host() -> tuple[str, int, int]:
    """Where, free, total: of this machine, or of this process where `ulimit -v` leaves it less."""
    machine = psutil.virtual_memory()
    bound, _ = resource.getrlimit(resource.RLIMIT_AS)
    left = bound - psutil.Process().memory_info().vms
    if bound != resource.RLIM_INFINITY and left < machine.available:
        return "what this process may take (ulimit -v)", max(0, left), bound
    return "the host's memory", machine.available, machine.total
