"""A push to 56 samplers on 7 nodes: ``python -m benchmarks.weights.fleet``

```
hub: WeightStore ── CURVE ── bandwidth of the hub's network / 16 ──> 7 processes (nodes) of 8 samplers, a thread each
                                                                     with a store on disk; every digest verified
```

The version has 64 MB in the place of CogVideoX-5B's 11.14 GB, and differs from the one before by about as much as after
ten optimizer steps at a learning rate of 5e-6 (`delta.py`). The ways to get it:

```
whole           every sampler downloads the file: a start, and every push before there were differences
whole, by node  one sampler of each node downloads the file, the others link it
delta           every sampler downloads the difference from the version that it has staged
delta, by node  one sampler of each node does, and the others link its file
```

Seconds are from the push until the last sampler has staged the version; the difference is made in this time. Limit is
the time that the bytes need on the network alone. The bandwidth is scaled down by 16, because hub and nodes share two
cores here, where each has dozens: at full bandwidth this machine's encryption would be the limit of "whole", and the
coding that of "delta". Times of a full-size version would be longer by 11.14 GB / 64 MB / 16 = 10.9.
"""

from __future__ import annotations

import multiprocessing
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Aim, Report, Row, ratio
from common.messages import WorkerKey
from common.rpc.curve import KEYS, make_or_read
from common.rpc.server import LOOPBACK, Service, serving
from common.weights.node import Node
from common.weights.pull import Pull
from common.weights.source import IO_THREADS, RemoteWeights, StoredWeights, WeightSource
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream

NODES, PER_NODE = 7, 8
SCALED = 16  # by which the bandwidth is divided
BANDWIDTHS = (1.25e9, 3e9)  # bytes/s: 10 and 24 Gb/s
BYTES, ROUNDS = 64_000_000, 3
STD, MOVE = 0.02, 1.5e-5  # of the weights, and of their moves in ten steps
AGAIN_SECONDS = 0.02  # until a sampler looks again whether another one has staged the version
WAIT = 600.0  # seconds
PACKAGES = ["torch", "numpy", "pyzmq", "safetensors"]


@dataclass(frozen=True)
class Way:
    """How samplers get a version."""

    name: str
    staged: bool  # they have the version before
    shared: bool  # samplers of a node link each other's files


WHOLE, WHOLE_BY_NODE = Way("whole", False, False), Way("whole, by node", False, True)
DELTA, DELTA_BY_NODE = Way("delta", True, False), Way("delta, by node", True, True)
WAYS = (WHOLE, WHOLE_BY_NODE, DELTA, DELTA_BY_NODE)


# The hub.


class LimitedWeights(StoredWeights):
    """Sends at most `rate` bytes per second, and counts them."""

    def __init__(self, store: WeightStore, rate: float) -> None:
        super().__init__(store)
        self.sent, self._rate, self._free_at = 0, rate, 0.0

    def chunk(self, version: int, offset: int) -> bytes:
        """See `WeightSource`."""
        return self._limited(super().chunk(version, offset))

    def delta_chunk(self, digest: str, base_digest: str, offset: int) -> bytes:
        """See `WeightSource`."""
        return self._limited(super().delta_chunk(digest, base_digest, offset))

    def _limited(self, data: bytes) -> bytes:
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + len(data) / self._rate
        time.sleep(self._free_at - now)
        self.sent += len(data)
        return data


def publish(store: WeightStore, size: int) -> None:
    """Two versions, 1 and 2, of `size` bytes: ten optimizer steps apart."""
    draw = torch.Generator().manual_seed(0)
    masters = STD * torch.randn(size // 2, generator=draw)
    for version in (1, 2):
        state = {f"block.{place}": part.bfloat16() for place, part in enumerate(masters.chunk(8))}
        stream = TensorStream.of(state)
        store.publish(stream, version=version, step=version, pushes=version, kind="full", base=version)
        masters += MOVE * torch.randn(size // 2, generator=draw)


# The nodes, in other processes.


@dataclass(frozen=True)
class Order:
    """What a node is told to do."""

    folder: Path  # of the node
    way: Way
    address: str
    key: WorkerKey
    samplers: int


def _node(pipe: Any) -> None:
    for order in iter(pipe.recv, None):
        with ExitStack() as stack:
            samplers = list(_samplers(order, stack))
            pipe.send("ready")
            pipe.recv()
            with ThreadPoolExecutor(order.samplers) as threads:
                list(threads.map(_stage, samplers))
            pipe.send("staged")


def _samplers(order: Order, stack: ExitStack) -> Iterator[Pull]:
    """The samplers of a node, connected. If they share nothing, they do not know of each other's lock either."""
    own = [order.folder / str(place) for place in range(order.samplers)]
    stores = [one if order.way.shared else one / "weights" for one in own]
    for place, folder in enumerate(stores):
        source = stack.enter_context(RemoteWeights.at(order.address, f"sampler-{place}", order.key))
        source.versions()
        nearby = (lambda: stores) if order.way.shared else tuple
        yield Pull(source, WeightStore(folder), node=Node(nearby))


def _stage(pull: Pull) -> None:
    while pull(2) is None:
        time.sleep(AGAIN_SECONDS)


@contextmanager
def nodes(count: int) -> Iterator[list[Any]]:
    """Processes that carry out an `Order`, as the pipes to them."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_node, args=(theirs,), daemon=True) for _, theirs in ends]
    for process in processes:
        process.start()
    try:
        yield [mine for mine, _ in ends]
    finally:
        for mine, _ in ends:
            mine.send(None)
        for process in processes:
            process.join(WAIT)


def answers(pipes: Sequence[Any], expected: str) -> None:
    """Wait for all nodes. Raises `RuntimeError` if one does not answer, `EOFError` if one died."""
    for pipe in pipes:
        if not pipe.poll(WAIT) or pipe.recv() != expected:
            raise RuntimeError(f"a node is not {expected}")


# The measurements.


@dataclass(frozen=True)
class Push:
    """One push: seconds until all have it, and bytes sent."""

    seconds: float
    sent: int


def push(pipes: Sequence[Any], way: Way, rate: float, store: WeightStore, samplers: int) -> Push:
    """Push version 2 to all samplers of all nodes, from a service that has made no difference yet."""
    with TemporaryDirectory() as folder:
        keys, target = make_or_read(Path(folder) / KEYS), LimitedWeights(store, rate)
        with serving(Service(WeightSource, target, LOOPBACK, keys=keys, io_threads=IO_THREADS)) as service:
            for place, pipe in enumerate(pipes):
                home = Path(folder) / f"node-{place}"
                order = Order(home, way, service.address, keys.worker, samplers)
                if way.staged:
                    _stage_first(order, store)
                pipe.send(order)
            answers(pipes, "ready")
            began = time.perf_counter()
            for pipe in pipes:
                pipe.send("go")
            answers(pipes, "staged")
            return Push(time.perf_counter() - began, target.sent)


def _stage_first(order: Order, store: WeightStore) -> None:
    """Give every sampler of a node version 1, by links."""
    manifest = store.manifest(1)
    for place in range(order.samplers):
        own = order.folder / str(place)
        mine = WeightStore(own if order.way.shared else own / "weights")
        mine.link(manifest, store.file(1), store.file(1).stat().st_size)


def measure(
    bandwidths: Sequence[float] = BANDWIDTHS,
    size: int = BYTES,
    rounds: int = ROUNDS,
    fleet: tuple[int, int] = (NODES, PER_NODE),
) -> Report:
    """Measure all ways at every bandwidth, in alternating rounds."""
    rows: list[Row] = []
    aims: list[Aim] = []
    with TemporaryDirectory() as folder, nodes(fleet[0]) as pipes:
        store = WeightStore(Path(folder) / "weights")
        publish(store, size)
        for bandwidth in bandwidths:
            rate, found = bandwidth / SCALED, {way: list[Push]() for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    found[way].append(push(pipes, way, rate, store, fleet[1]))
            _report(bandwidth, found, store.file(2).stat().st_size, rows, aims)
    return Report("fleet", rows, aims, PACKAGES, package="benchmarks.weights")


def _report(bandwidth: float, found: dict[Way, list[Push]], size: int, rows: list[Row], aims: list[Aim]) -> None:
    """Add the rows and targets of one bandwidth."""
    at, whole = f"{bandwidth / 1e9:g} GB/s / {SCALED}", found[WHOLE]
    for way in WAYS:
        seconds, sent = ([getattr(one, name) for one in found[way]] for name in ("seconds", "sent"))
        limit, other = median(sent) * SCALED / bandwidth, [] if way is WHOLE else [one.seconds for one in whole]
        compared = (median(other), limit, ratio(other, seconds)) if other else (None, limit, None)
        rows.append(Row(f"{at}: {way.name}; other: whole", "s", median(seconds), *compared))
        rows.append(Row(f"{at}: {way.name}: sent by the hub", "versions", median(sent) / size))
    faster = ratio([one.seconds for one in whole], [one.seconds for one in found[DELTA_BY_NODE]]).median
    fewer = median(one.sent for one in whole) / median(one.sent for one in found[DELTA_BY_NODE])
    each = median(one.sent for one in whole) / median(one.sent for one in found[DELTA])
    aims += [
        Aim(f"{at}: bytes to a sampler, whole / delta", each, ">= 10", each >= 10),
        Aim(f"{at}: bytes out of the hub, whole / delta by node", fewer, ">= 50", fewer >= 50),
        Aim(f"{at}: time until all have it, whole / delta by node", faster, ">= 20", faster >= 20),
    ]


def main() -> None:
    """See `benchmarks.harness.main`."""

    def run(given: Namespace) -> Report:
        del given
        return measure()

    harness.main(__doc__, run)


if __name__ == "__main__":
    main()
