"""Duration of weight sync, and of the sampler's pause for it: ``python -m benchmarks.weight_push``

```
   ours    WeightStore ──ROUTER──> 1 or 4 processes: pulled, every digest verified, discarded
   other   ray.put of the same tensors ──plasma──> ray.get in 1 or 4 actors; views of shared memory, not read
   limit   one chunk, sent repeatedly over ROUTER/DEALER ──> 1 or 4 processes: discarded
```

Times are until the last process has everything, per GB (10⁹ bytes) of one copy. Everything runs over this machine's
loopback, so publisher and samplers share its processors.

The pause is the time of `WeightPuller.load` and of copying into the live weights. Other is loading with all digests
verified again; limit is the copy alone, from memory to memory. The pause is given as a fraction of the time of a pull
to disk.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
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
from common.weights.pull import Pull
from common.weights.source import AHEAD, CHUNK, RemoteWeights, weight_service
from common.weights.store import WeightStore, manifest_checker
from common.weights.sync import WeightPuller
from common.weights.tensor_file import TensorStream

GB = 10**9
TENSOR = 50 * 10**6  # bytes per tensor, about a projection of CogVideoX-5B
SAMPLERS = (1, 4)
WAIT = 60.0  # seconds
STORE_BYTES = 5 * GB  # size of Ray's object store


@dataclass(frozen=True)
class Case:
    """A size to transfer, and the number of rounds."""

    name: str
    bytes: int
    rounds: int


ADAPTER = Case("10 MB", GB // 100, 9)
CASES = (ADAPTER, Case("1 GB", GB, 5), Case("4 GB", 4 * GB, 5))


def weights(case: Case) -> dict[str, torch.Tensor]:
    """bfloat16 tensors of `case.bytes` in total."""
    count = max(1, case.bytes // TENSOR)
    size = case.bytes // count // 2
    return {f"block.{place}": torch.full((size,), place + 1.0, dtype=torch.bfloat16) for place in range(count)}


# The samplers' side, in other processes.


class DiscardingStore(WeightStore):
    """A store that verifies every digest of a received version, but keeps nothing."""

    def receive(self, manifest: WeightVersion, chunks: Iterable[bytes | memoryview]) -> None:
        """See `WeightStore.receive`."""
        check = manifest_checker(manifest)
        for chunk in chunks:
            check.feed(chunk)
        check.close()


def ready() -> None:
    """Do nothing; the reply shows that the process has started."""


def pull_and_discard(address: str, version: int) -> None:
    """Pull a version and discard it. The folder, and with it the lock of the node, is the process's own."""
    with TemporaryDirectory() as folder, RemoteWeights.at(address, "sampler") as source:
        if Pull(source, DiscardingStore(Path(folder) / "weights"))(version) is None:
            raise RuntimeError("another sampler is downloading this version")


def receive_raw(address: str, size: int) -> None:
    """Receive `size` bytes and discard them."""
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
    """`count` processes that run the same function at the same time: ``with Samplers(4) as samplers:``"""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(count)]
        self.pipes = [mine for mine, _ in ends]
        self._processes = [context.Process(target=_sampler, args=(theirs,), daemon=True) for _, theirs in ends]

    def start(self, what: Callable[..., None], *arguments: Any) -> None:
        """Start `what` in all processes."""
        for pipe in self.pipes:
            pipe.send((what, arguments))

    def wait(self) -> None:
        """Wait until all have finished. Raises `EOFError` if a process died."""
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
            with suppress(BrokenPipeError):  # it died, and `wait` has raised
                pipe.send(None)
        for process in self._processes:
            process.join(WAIT)


# The three transfers, in seconds.


def ours(samplers: Samplers, address: str, version: int) -> float:
    """Pull from the service at `address`."""
    began = time.perf_counter()
    samplers.start(pull_and_discard, address, version)
    samplers.wait()
    return time.perf_counter() - began


def raw(samplers: Samplers, size: int) -> float:
    """Send the same bytes over bare ZeroMQ sockets."""
    chunk = bytes(CHUNK)
    began = time.perf_counter()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.SNDHWM, AHEAD)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # block instead of dropping messages
        socket.bind(LOOPBACK)
        samplers.start(receive_raw, socket.getsockopt_string(zmq.LAST_ENDPOINT), size)
        peers = [socket.recv_multipart()[0] for _ in samplers.pipes]
        for start in range(0, size, CHUNK):
            part = memoryview(chunk)[: size - start]
            for peer in peers:
                socket.send_multipart([peer, part], copy=False)
        samplers.wait()
    return time.perf_counter() - began


class ThroughRay:
    """`put` and `get` of the same tensors, as NumPy arrays: Ray reads these without a copy."""

    def __init__(self, count: int) -> None:
        import ray  # noqa: PLC0415 - starts threads

        @ray.remote(num_cpus=0)
        class Reader:
            def read(self, refs: list[Any]) -> int:
                arrays: Any = ray.get(refs[0])
                return sum(array.nbytes for array in arrays.values())

        self._ray = ray
        self._readers: list[Any] = [Reader.remote() for _ in range(count)]
        self({"a": torch.zeros(1)})  # wait until they have started

    def __call__(self, state: Mapping[str, torch.Tensor]) -> float:
        """Seconds until the last reader has the tensors."""
        arrays = {name: tensor.view(torch.int16).numpy() for name, tensor in state.items()}
        began = time.perf_counter()
        ref = self._ray.put(arrays)
        self._ray.get([reader.read.remote([ref]) for reader in self._readers])
        return time.perf_counter() - began

    def close(self) -> None:
        """Kill the readers."""
        for reader in self._readers:
            self._ray.kill(reader)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster."""
    import ray  # noqa: PLC0415

    ray.init("local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


# The rows.


@dataclass(frozen=True)
class Transfer:
    """Seconds of each round of one case."""

    case: Case
    samplers: int
    ours: list[float]
    limit: list[float]
    ray: list[float]  # empty without Ray

    def row(self) -> Row:
        """Seconds per GB of one copy."""
        case_name = f"{self.case.name} to {self.samplers} sampler{'s' * (self.samplers > 1)}; other: Ray's plasma"
        scale = GB / self.case.bytes
        return Row(
            case_name,
            "s/GB",
            scale * median(self.ours),
            scale * median(self.ray) if self.ray else None,
            scale * median(self.limit),
            ratio(self.ray, self.ours) if self.ray else None,
        )

    def aim(self) -> Aim:
        """The target: at most 1.5 times as long as the raw socket."""
        value = ratio(self.ours, self.limit).median
        case_name = f"{self.case.name} to {self.samplers}: time against raw loopback"
        return Aim(case_name, value, "<= 1.5", value <= 1.5)


def transfer(case: Case, version: int, address: str, samplers: Samplers, through_ray: ThroughRay | None) -> Transfer:
    """Rounds of the three transfers in turn."""
    state = weights(case) if through_ray else {}
    seconds: list[tuple[float, float, float]] = []
    for _ in range(case.rounds):
        mine, limit = ours(samplers, address, version), raw(samplers, case.bytes)
        seconds.append((mine, limit, through_ray(state) if through_ray else 0.0))
    mine, limit, theirs = (list(column) for column in zip(*seconds, strict=True))
    return Transfer(case, len(samplers.pipes), mine, limit, theirs if through_ray else [])


def pause(case: Case, version: int, published: WeightStore, folder: Path) -> tuple[Row, Aim]:
    """The time a sampler pauses to load a version, and its fraction of the transfer to disk."""
    live, staged = weights(case), WeightStore(folder / f"staged-{case.bytes}")
    pulled = _pull_to_disk(version, published, staged)
    _drop_from_page_cache(published.file(version))
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
    case_name = f"{case.name}: pause of a sampler; other: with digests"
    ours, other, limit = (scale * median(one) for one in (mine, compared, copying))
    row = Row(case_name, "s/GB", ours, other, limit, ratio(compared, mine))
    share = median(mine) / pulled
    return row, Aim(f"{case.name}: pause / transfer to the disk", share, "< 0.05", share < 0.05)


def _pull_to_disk(version: int, published: WeightStore, staged: WeightStore) -> float:
    """Pull a version to disk. Returns the seconds. Closes the service at the end, and with it its memory map."""
    with serving(weight_service(published)) as service, RemoteWeights.at(service.address, "sampler") as source:
        return _seconds(lambda: Pull(source, staged)(version))


def _drop_from_page_cache(file: Path) -> None:
    """Drop the published file from the page cache: a publisher elsewhere would not use the sampler's memory."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(live: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copy a staged version into the live weights, like a sampler."""
    for name, tensor in state.items():
        live[name].copy_(tensor)


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def staging_delay(folder: Path, rounds: int) -> tuple[Row, Aim]:
    """The time from the end of `publish` to staged, for an adapter that the sampler asks for."""
    store, seconds, state = WeightStore(folder / "published"), [], weights(ADAPTER)
    _publish(store, state, 0)
    with (
        serving(weight_service(store)) as service,
        WeightPuller(service.address, lambda: 0, folder / "staged", "sampler") as puller,
    ):
        puller.wait(0, WAIT)
        for version in range(1, 1 + rounds):
            _publish(store, state, version)
            began = time.perf_counter()
            while not puller.staged(version) and time.perf_counter() < began + WAIT:
                time.sleep(0.0005)
            seconds.append(time.perf_counter() - began)
    middle = median(seconds)
    case_name = f"{ADAPTER.name} adapter: from published to staged"
    return Row(case_name, "s", middle), Aim(case_name, middle, "< 0.1 s", middle < 0.1)


def _publish(store: WeightStore, state: Mapping[str, torch.Tensor], version: int) -> None:
    store.publish(TensorStream.of(state), version=version, step=version, pushes=version, kind="full", base=version)


def measure(cases: Iterable[Case] = CASES, counts: Iterable[int] = SAMPLERS, with_ray: bool = True) -> Report:
    """Measure every case with every number of samplers, the pauses, and the staging delay of an adapter."""
    rows: list[Row] = []
    aims: list[Aim] = []
    with ray_cluster() if with_ray else nullcontext():
        for case in cases:
            with TemporaryDirectory() as folder:  # one per case: deleted files leave the page cache
                _measure(case, counts, with_ray, Path(folder), rows, aims)
    with TemporaryDirectory() as folder:
        row, aim = staging_delay(Path(folder), ADAPTER.rounds)
    return Report("weight_push", [*rows, row], [*aims, aim], ["torch", "pyzmq", "ray", "safetensors"])


def _measure(case: Case, counts: Iterable[int], with_ray: bool, folder: Path, rows: list[Row], aims: list[Aim]) -> None:
    """Add the case's rows and targets."""
    store = WeightStore(folder / "published")
    _publish(store, weights(case), 0)
    with serving(weight_service(store)) as service:
        for count in counts:
            found = _transfer(case, 0, service.address, count, with_ray)
            rows.append(found.row())
            aims += [found.aim()] if case.bytes >= GB else []  # for smaller sizes connecting dominates
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
    """See `benchmarks.harness.main`."""

    def run(given: Namespace) -> Report:
        del given
        return measure()

    harness.main(__doc__, run)


if __name__ == "__main__":
    main()
