"""Published versions of weights, and weight services with faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
import torch

from common.messages import WeightVersion
from common.weights import pull, source
from common.weights.source import StoredWeights
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream

WAIT = 20.0  # seconds


def bfloat16_state(version: int, seed: int = 0, size: int = 3000) -> dict[str, torch.Tensor]:
    """Tensors of which a fifth moves by a unit from each version to the next."""
    state = torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16()
    words = state.view(torch.int16)
    for one in range(1, version + 1):
        draw = torch.rand(size, generator=torch.Generator().manual_seed(one))
        words += (draw < 0.1).to(torch.int16) - (draw > 0.9).to(torch.int16)
    return {"w": state, "b": torch.ones(3).bfloat16()}


def publish_bfloat16(store: WeightStore, version: int, seed: int = 0, size: int = 3000) -> WeightVersion:
    """Publish `bfloat16_state` in full."""
    stream = TensorStream.of(bfloat16_state(version, seed, size))
    return store.publish(stream, version=version, step=version, pushes=version, kind="full", base=version)


@contextmanager
def small_deltas() -> Iterator[None]:
    """Deltas of versions of any size, in several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CHUNK", 128)
        patch.setattr(source, "GROWS_SECONDS", 0.005)
        patch.setattr(pull, "LEAST_DELTA", 0)
        yield


def publish(
    store: WeightStore, version: int, kind: str = "full", base: int | None = None, step: int | None = None
) -> WeightVersion:
    """Publish a version of about 34 kB that has little in common with others."""
    state = {"w": torch.randn(300, 28, generator=torch.Generator().manual_seed(version)), "b": torch.ones(3).bfloat16()}
    base, step = version if base is None else base, version if step is None else step
    return store.publish(TensorStream.of(state), version=version, step=step, pushes=step, kind=kind, base=base)


@contextmanager
def small_chunks() -> Iterator[None]:
    """A version of `publish` is nine chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CHUNK", 4096)
        yield


class Damaging(StoredWeights):
    """Alters a byte of a chunk, once."""

    damaged = 0

    def chunk(self, version: int, offset: int) -> bytes:
        data = bytearray(super().chunk(version, offset))
        if not self.damaged and offset:
            self.damaged += 1
            data[-5] ^= 1
        return bytes(data)


def debris(folder: Path) -> list[str]:
    """The files in `folder` that are not staged versions."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("v")]


class Interrupted(StoredWeights):
    """Calls `between` before it answers for the chunk at `offset` for the first time."""

    def __init__(self, store: WeightStore, offset: int, between: Callable[[], None]) -> None:
        super().__init__(store)
        self.offset, self.between, self.called = offset, between, 0

    def chunk(self, version: int, offset: int) -> bytes:
        if offset == self.offset and not self.called:
            self.called += 1
            self.between()
        return super().chunk(version, offset)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until `is_so` returns True."""
    ends = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < ends
        Event().wait(0.01)
