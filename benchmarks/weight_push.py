"""How long weights take to the samplers, and how long a sampler stands still: ``python -m benchmarks.weight_push``

```
   ours    WeightStore ──ROUTER──> 1 or 4 processes: pulled, every digest compared, thrown away
   other   ray.put of the same tensors ──plasma──> ray.get in 1 or 4 actors; views of shared memory, not read
   limit   one chunk, sent again and again over ROUTER/DEALER ──> 1 or 4 processes: thrown away
```

Seconds count until the last has everything, per GB (10⁹ bytes) of one copy. All on this machine's loopback, where the
publisher's and the samplers' processors are the same ones.

The pause is what `WeightPuller.load` and copying into the live weights take; beside it (other) loading with all digests
compared again, and as its limit the copying alone, from memory to memory. The time of the transfer that it is a part
of is that of a pull to the disk.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import zmq

from benchmarks import harness
from benchmarks.harness import Aim, Report, Row, ratio
from common.messages import WeightVersion
from common.rpc.server import LOOPBACK, serving
from common.weights.store import WeightStore, manifest_checker
from common.weights.sync import (
    AHEAD,
    CHUNK,
    RemoteWeights,
    VersionPublisher,
    WeightPuller,
    pull,
    weight_service,
)
from common.weights.tensor_file import TensorStream

GB = 10**9
TENSOR = 50 * 10**6  # bytes of one tensor, about a projection of CogVideoX-5B
SAMPLERS = (1, 4)
WAIT = 60.0  # seconds
STORE_BYTES = 5 * GB  # of Ray's plasma


@dataclass(frozen=True)
class Case:
    """So many bytes, so many times."""

    words: str
    bytes: int
    rounds: int


ADAPTER = Case("10 MB", GB // 100, 9)
CASES = (ADAPTER, Case("1 GB", GB, 5), Case("4 GB", 4 * GB, 5))


def weights(case: Case) -> dict[str, torch.Tensor]:
    """bfloat16 tensors of `case.bytes` in all."""
    count = max(1, case.bytes // TENSOR)
    size = case.bytes // count // 2
    return {f"block.{place}": torch.full((size,), place + 1.0, dtype=torch.bfloat16) for place in range(count)}


# The samplers' side, in processes of their own.


class Discarding(WeightStore):
    """Takes a version in, compares every digest, and keeps nothing."""

    def receive(self, manifest: WeightVersion, chunks: Iterable[bytes | memoryview]) -> None:
        """See `WeightStore.receive`."""
        check = manifest_checker(manifest)
        for chunk in chunks:
            check.feed(chunk)
        check.close()


def ready() -> None:
    """Answers when the process has started."""


def take_in(address: str, version: int) -> None:
    """Pull a version and throw it away."""
    with TemporaryDirectory() as folder, RemoteWeights.at(address, "sampler") as source:
        pull(source, version, Discarding(Path(folder)))


def take_raw(address: str, size: int) -> None:
    """Receive `size` bytes and throw them away."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.RCVHWM, AHEAD)
        socket.connect(address)
        socket.send(b"")
        while size > 0:
            size -= len(socket.recv(copy=False).buffer)


def _sampler(pipe: Any) -> None:
    for what, arguments in iter(pipe.recv, None):
        pipe.send(what(*arguments))


class Samplers:
    """`count` processes that do the same at the same time. ``with Samplers(4) as samplers:``"""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(count)]
        self.pipes = [mine for mine, _ in ends]
        self._processes = [context.Process(target=_sampler, args=(theirs,), daemon=True) for _, theirs in ends]

    def start(self, what: Callable[..., None], *arguments: Any) -> None:
        """Tell all to do it."""
        for pipe in self.pipes:
            pipe.send((what, arguments))

    def wait(self) -> None:
        """Until all have done it. A process that died is an `EOFError`."""
        for pipe in self.pipes:
            pipe.recv()

    def __enter__(self) -> Samplers:
        for process in self._processes:
            process.start()
        self.start(ready)
        self.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        for pipe in self.pipes:
            with suppress(BrokenPipeError):  # it died, which `wait` has told
                pipe.send(None)
        for process in self._processes:
            process.join(WAIT)


# Three ways, in seconds.


def ours(samplers: Samplers, address: str, version: int) -> float:
    """Pull from the service at `address`."""
    began = time.perf_counter()
    samplers.start(take_in, address, version)
    samplers.wait()
    return time.perf_counter() - began


def raw(samplers: Samplers, size: int) -> float:
    """What ZeroMQ can do."""
    chunk = bytes(CHUNK)
    began = time.perf_counter()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.SNDHWM, AHEAD)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # waits where it would drop
        socket.bind(LOOPBACK)
        samplers.start(take_raw, socket.getsockopt_string(zmq.LAST_ENDPOINT), size)
        peers = [socket.recv_multipart()[0] for _ in samplers.pipes]
        for start in range(0, size, CHUNK):
            part = memoryview(chunk)[: size - start]
            for peer in peers:
                socket.send_multipart([peer, part], copy=False)
        samplers.wait()
    return time.perf_counter() - began


class ThroughRay:
    """`put` and `get` of the same tensors, as NumPy arrays: those are read where they lie."""

    def __init__(self, count: int) -> None:
        import ray  # noqa: PLC0415 - starts threads

        @ray.remote(num_cpus=0)
        class Reader:
            def read(self, refs: list[Any]) -> int:
                arrays: Any = ray.get(refs[0])
                return sum(array.nbytes for array in arrays.values())

        self._ray = ray
        self._readers: list[Any] = [Reader.remote() for _ in range(count)]
        self({"a": torch.zeros(1)})  # they have started

    def __call__(self, state: Mapping[str, torch.Tensor]) -> float:
        """Seconds until the last reader has them."""
        arrays = {name: tensor.view(torch.int16).numpy() for name, tensor in state.items()}
        began = time.perf_counter()
        ref = self._ray.put(arrays)
        self._ray.get([reader.read.remote([ref]) for reader in self._readers])
        return time.perf_counter() - began

    def close(self) -> None:
        """End the readers."""
        for reader in self._readers:
            self._ray.kill(reader)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A Ray of this machine alone."""
    import ray  # noqa: PLC0415

    ray.init("local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


# The rows.


@dataclass(frozen=True)
class Transfer:
    """Seconds of every round of one case."""

    case: Case
    samplers: int
    ours: list[float]
    limit: list[float]
    ray: list[float]  # empty: without it

    def row(self) -> Row:
        """Per GB of one copy."""
        words = f"{self.case.words} to {self.samplers} sampler{'s' * (self.samplers > 1)}; other: Ray's plasma"
        scale = GB / self.case.bytes
        return Row(
            words,
            "s/GB",
            scale * median(self.ours),
            scale * median(self.ray) if self.ray else None,
            scale * median(self.limit),
            ratio(self.ray, self.ours) if self.ray else None,
        )

    def aim(self) -> Aim:
        """At most half as long again as the raw socket."""
        value = ratio(self.ours, self.limit).median
        words = f"{self.case.words} to {self.samplers}: time against raw loopback"
        return Aim(words, value, "<= 1.5", value <= 1.5)


def transfer(case: Case, version: int, address: str, samplers: Samplers, through_ray: ThroughRay | None) -> Transfer:
    """Rounds of the three ways in turn."""
    state = weights(case) if through_ray else {}
    seconds: list[tuple[float, float, float]] = []
    for _ in range(case.rounds):
        mine, limit = ours(samplers, address, version), raw(samplers, case.bytes)
        seconds.append((mine, limit, through_ray(state) if through_ray else 0.0))
    mine, limit, theirs = (list(column) for column in zip(*seconds, strict=True))
    return Transfer(case, len(samplers.pipes), mine, limit, theirs if through_ray else [])


def pause(case: Case, version: int, published: WeightStore, folder: Path) -> tuple[Row, Aim]:
    """How long loading takes that a sampler has to wait for, and its share of the transfer to the disk."""
    live, staged = weights(case), WeightStore(folder / f"staged-{case.bytes}")
    pulled = _pull_to_disk(version, published, staged)
    _forget(published.file(version))
    times: list[tuple[float, ...]] = []
    for _ in range(case.rounds):
        again = {name: tensor.clone() for name, tensor in live.items()}
        copying = _seconds(lambda again=again: load(live, again))
        del again
        ours = _seconds(lambda: load(live, staged.open(version)[1]))
        compared = _seconds(lambda: load(live, staged.load(version)[1]))
        times.append((ours, compared, copying))
    mine, compared, copying = (list(column) for column in zip(*times, strict=True))
    scale = GB / case.bytes
    words = f"{case.words}: pause of a sampler; other: with digests"
    ours, other, limit = (scale * median(one) for one in (mine, compared, copying))
    row = Row(words, "s/GB", ours, other, limit, ratio(compared, mine))
    share = median(mine) / pulled
    return row, Aim(f"{case.words}: pause / transfer to the disk", share, "< 0.05", share < 0.05)


def _pull_to_disk(version: int, published: WeightStore, staged: WeightStore) -> float:
    """Seconds. The service is gone afterwards, and what it had mapped."""
    with serving(weight_service(published)) as service, RemoteWeights.at(service.address, "sampler") as source:
        return _seconds(lambda: pull(source, version, staged))


def _forget(file: Path) -> None:
    """Out of the page cache: a publisher elsewhere takes none of a sampler's memory."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(live: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """What a sampler does with a staged version."""
    for name, tensor in state.items():
        live[name].copy_(tensor)


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def visible(folder: Path, rounds: int) -> tuple[Row, Aim]:
    """From the end of `publish` to staged, of an adapter, over the note."""
    store, seconds, state = WeightStore(folder / "published"), [], weights(ADAPTER)
    _publish(store, state, 0)
    with (
        serving(weight_service(store)) as service,
        closing(VersionPublisher()) as notes,
        WeightPuller(service.address, notes.address, folder / "staged", "sampler") as puller,
    ):
        puller.wait(0, WAIT)
        for version in range(1, 1 + rounds):
            _publish(store, state, version)
            began = time.perf_counter()
            notes.announce(version)
            while version not in puller.store.versions() and time.perf_counter() < began + WAIT:
                time.sleep(0.0005)
            seconds.append(time.perf_counter() - began)
    middle = median(seconds)
    words = f"{ADAPTER.words} adapter: from published to staged"
    return Row(words, "s", middle), Aim(words, middle, "< 0.1 s", middle < 0.1)


def _publish(store: WeightStore, state: Mapping[str, torch.Tensor], version: int) -> None:
    store.publish(TensorStream.of(state), version=version, step=version, pushes=version, kind="full", base=version)


def measure(cases: Iterable[Case] = CASES, counts: Iterable[int] = SAMPLERS, with_ray: bool = True) -> Report:
    """Every case with every number of samplers; pauses; an adapter's way."""
    rows: list[Row] = []
    aims: list[Aim] = []
    with ray_cluster() if with_ray else nullcontext():
        for case in cases:
            with TemporaryDirectory() as folder:  # each its own: what is deleted takes no memory from the next
                _measure(case, counts, with_ray, Path(folder), rows, aims)
    with TemporaryDirectory() as folder:
        row, aim = visible(Path(folder), ADAPTER.rounds)
    return Report("weight_push", [*rows, row], [*aims, aim], ["torch", "pyzmq", "ray", "safetensors"])


def _measure(case: Case, counts: Iterable[int], with_ray: bool, folder: Path, rows: list[Row], aims: list[Aim]) -> None:
    """Add the case's rows and aims."""
    store = WeightStore(folder / "published")
    _publish(store, weights(case), 0)
    with serving(weight_service(store)) as service:
        for count in counts:
            found = _transfer(case, 0, service.address, count, with_ray)
            rows.append(found.row())
            aims += [found.aim()] if case.bytes >= GB else []  # below it, the start of the connection counts
    row, aim = pause(case, 0, store, folder)
    rows.append(row)
    aims.append(aim)


def _transfer(case: Case, version: int, address: str, count: int, with_ray: bool) -> Transfer:
    through_ray = ThroughRay(count) if with_ray else None
    try:
        with Samplers(count) as samplers:
            return transfer(case, version, address, samplers, through_ray)
    finally:
        if through_ray is not None:
            through_ray.close()


def main() -> None:
    """See `report.main`."""

    def run(given: Namespace) -> Report:
        del given
        return measure()

    harness.main(__doc__, run)


if __name__ == "__main__":
    main()
