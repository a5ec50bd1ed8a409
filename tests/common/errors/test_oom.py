"""Out-of-memory errors: real ones of the libraries on this machine, and torch's messages for a GPU."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from common.errors import RunFailed
from common.errors.oom import is_shortage, reraise_oom, shortage

MUCH = 10**15  # bytes; more than any machine has
GPU = (
    "CUDA out of memory. Tried to allocate 17.80 GiB. GPU 1 has a total capacity of 23.64 GiB of which 2.15 GiB is "
    "free. Including non-PyTorch memory, this process has 21.48 GiB memory in use. Of the allocated memory 20.91 GiB "
    "is allocated by PyTorch, and 112.13 MiB is reserved by PyTorch but unallocated."
)


def error_of(what: Callable[[], Any]) -> Exception:
    try:
        what()
    except Exception as error:
        return error
    raise AssertionError("the allocation succeeded")


@pytest.mark.parametrize(
    ("take", "asked"),
    [
        (lambda: torch.empty(MUCH, dtype=torch.uint8), MUCH),
        (lambda: np.empty(1 << 50, np.uint8), 1 << 50),
        (lambda: np.empty(123 << 40, np.uint8), 123 << 40),  # numpy writes "123. TiB"
        (lambda: bytearray(MUCH), None),
    ],
)
def test_out_of_host_memory(take: Callable[[], Any], asked: int | None) -> None:
    found = shortage(error_of(take))
    assert found is not None
    assert (found.where, found.asked, found.total) == ("the host's memory", asked, psutil.virtual_memory().total)
    assert found.free is not None
    assert 0 < found.free < psutil.virtual_memory().total


def test_out_of_gpu_memory_reports_the_figures_in_torchs_message() -> None:
    found = shortage(torch.OutOfMemoryError(GPU))
    assert found is not None
    assert found.where == "GPU 1"
    assert (found.asked, found.free, found.total) == (int(17.8 * 2**30), int(2.15 * 2**30), int(23.64 * 2**30))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_gpu_figures_missing_in_the_message_are_unknown(message: str) -> None:
    found = shortage(RuntimeError(message))
    assert found is not None
    assert (found.where, found.asked) == ("the GPU", None)
    assert (found.free is None) == (found.total is None) == (not torch.cuda.is_available())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("could not create a primitive descriptor for a matmul"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_shortage(error)
    assert shortage(error) is None
    reraise_oom(error)


def test_an_error_that_quotes_another_is_not_out_of_memory() -> None:
    assert not is_shortage(RunFailed("rewarder-0 died 2 times within an hour; last error: rewarder-0: out of memory"))


def test_reraise_oom_raises_out_of_memory_errors() -> None:
    for error in (OSError(errno.ENOMEM, "Cannot allocate memory"), torch.OutOfMemoryError(GPU)):
        with pytest.raises(type(error)):
            reraise_oom(error)
