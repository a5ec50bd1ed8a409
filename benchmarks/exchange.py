"""Throughput and latency of the exchange over the network: ``python -m benchmarks.exchange [--json OUT]``.

Ours: samplers, rewarders and a learner call an exchange in another process through `RemoteExchange`. A candidate counts
when its submit is answered, which means that it is durable: blobs fsynced, transaction committed with
``synchronous = FULL``.

Other: `ray.util.queue.Queue`, the usual choice in a Ray program. The same number of clients put and get candidates of
the same size, as numpy arrays, which Ray does not pickle. The queue is in memory only; nothing is durable.

Limit: the lowest of three rates, each measured alone in the same round on the same machine: the same frames through
bare ZeroMQ sockets, hashing the same bytes, and writing and fsyncing files of that size in the same folder. Ours does
all three on the same cores, and also reads and deletes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from secrets import token_hex
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import psutil
import zmq

from benchmarks.exchange_clients import GROUP, LATENTS, Sizes
from benchmarks.harness import Aim, Report, Row, main, ratio
from common.digests import digest
from common.exchange.remote import THREADS

CLIENTS, ROUNDS = (1, 8, 64), 3
PROCESSES = 2  # the clients are threads of these processes
WARMUP, SECONDS, LIMIT_SECONDS = 2.0, 6.0, 2.0
QUEUE_ITEMS = 64  # that Ray's queue holds at most
LEASES = ("lease_sampling", "lease_candidates", "lease_batch")


@dataclass(frozen=True)
class Window:
    """Measuring times."""

    warmup: float = WARMUP  # seconds, not counted
    seconds: float = SECONDS
    limit: float = LIMIT_SECONDS


@dataclass(frozen=True)
class Measurements:
    """The clients' measurements within the window, and the CPU time used."""

    seconds: float
    values: dict[str, list[float]]
    service_cpu: float = 0.0  # cores
    clients_cpu: float = 0.0  # cores

    def rate(self, kind: str) -> float:
        """Sum of the values per second."""
        return sum(self.values.get(kind, ())) / self.seconds


def duties(clients: int) -> dict[str, str]:
    """The duties of each client: letters of s (sampler), r (rewarder), l (learner).

    One client learns, one in eight scores, and the rest sample. Below 8 clients one does both learning and scoring; a
    single client does everything.
    """
    kinds = ["srl"] if clients == 1 else ["rl"] if clients < 8 else ["l", *"r" * (clients // 8)]
    kinds += "s" * (clients - len(kinds))
    return {f"worker-{place}": kind for place, kind in enumerate(kinds)}


# Ours.


def _start(what: str, **arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.exchange_clients", what, json.dumps(arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(process.args[2:4])} ended with code {process.wait()}")  # type: ignore[index]
    return line.strip()


@contextmanager
def service(folder: Path | None, samplers: int, sizes: Sizes) -> Iterator[tuple[str, int]]:
    """Run an exchange in another process and yield its address and process id. It is audited at the end."""
    process = _start("serve", folder=folder and str(folder), samplers=samplers, sizes=asdict(sizes))
    try:
        yield _line(process), process.pid
        process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"the exchange ended with code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def drive(address: str, who: dict[str, str], sizes: Sizes, window: Window, pid: int, raw: bool = False) -> Measurements:
    """Run the clients against the service at `address`, process `pid`. Returns the measurements within the window."""
    names = list(who)
    parts = [names[place::PROCESSES] for place in range(min(PROCESSES, len(names)))]
    each = [
        _start("clients", address=address, duties={n: who[n] for n in part}, sizes=asdict(sizes), raw=raw)
        for part in parts
    ]
    try:
        for process in each:
            _line(process)
        began = time.monotonic() + window.warmup
        until = began + window.seconds
        for process in each:
            assert process.stdin is not None
            process.stdin.write(f"{until}\n")
            process.stdin.flush()
        time.sleep(window.warmup)
        before = [_cpu(pid), sum(_cpu(process.pid) for process in each)]
        time.sleep(max(0.0, until - time.monotonic()))
        used = [_cpu(pid) - before[0], sum(_cpu(process.pid) for process in each) - before[1]]
        seen: dict[str, list[float]] = {}
        for process in each:
            for kind, values in json.loads(_line(process)).items():
                seen.setdefault(kind, []).extend(value for when, value in values if began <= when <= until)
        return Measurements(window.seconds, seen, *(cores / window.seconds for cores in used))
    finally:
        for process in each:
            process.kill()
            process.wait()


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def ours(clients: int, sizes: Sizes, window: Window, root: Path) -> Measurements:
    """Measure the exchange under the load of `clients`."""
    who = duties(clients)
    with TemporaryDirectory(dir=root) as folder, service(Path(folder), clients, sizes) as (address, pid):
        return drive(address, who, sizes, window, pid)


def generator(clients: int, sizes: Sizes, window: Window) -> Measurements:
    """Measure the clients alone: all are samplers, and the service stores nothing."""
    with service(None, clients, sizes) as (address, pid):
        return drive(address, {f"worker-{i}": "s" for i in range(clients)}, sizes, window, pid)


# Ray's queue.


def ray_queue(clients: int, sizes: Sizes, window: Window) -> float:
    """Candidates per second through `ray.util.queue.Queue`: half of the clients put, half get; one does both."""
    import ray  # noqa: PLC0415  (seconds to import)
    from ray.util.queue import Queue  # noqa: PLC0415

    options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 2 << 30}
    ray.init("local", num_cpus=PROCESSES + 1, **options)  # never connect to a Ray that is already running
    try:
        queue = Queue(QUEUE_ITEMS)
        workers = min(PROCESSES, clients)
        actors = [_ray_clients(ray).remote(queue, clients // workers, asdict(sizes)) for _ in range(workers)]
        ray.get([actor.ready.remote() for actor in actors])
        return sum(ray.get([actor.run.remote(window.warmup, window.seconds) for actor in actors]))
    finally:
        ray.shutdown()


def _ray_clients(ray: Any) -> Any:
    """The Ray actor class of the clients: threads that put or get, and count what they got."""

    @ray.remote(num_cpus=0)
    class Clients:
        def __init__(self, queue: Any, threads: int, sizes: dict[str, int]) -> None:
            import numpy as np  # noqa: PLC0415

            self.queue, self.threads, self.size = queue, threads, sizes["candidate"]
            self.noise, self.next = np.random.default_rng(0).integers(0, 256, 2 * self.size, np.uint8), count()
            self.got: list[float] = []
            self.stop = Event()

        def ready(self) -> None:
            pass

        def put(self) -> None:
            start = 16 * next(self.next) % self.size
            whole = self.noise[start : start + self.size]
            cut = int(LATENTS * self.size)
            self.queue.put({"id": f"{start}", "latents": whole[:cut], "clip": whole[cut:]})

        def get(self) -> None:
            self.queue.get()
            self.got.append(time.monotonic())

        def loop(self, *turns: Callable[[], None]) -> None:
            while not self.stop.is_set():
                for turn in turns:
                    turn()

        def run(self, warmup: float, seconds: float) -> float:
            half = self.threads // 2
            turns = [(self.put,)] * half + [(self.get,)] * half or [(self.put, self.get)]
            began = time.monotonic() + warmup
            for turn in turns:
                Thread(target=self.loop, args=turn, daemon=True).start()
            time.sleep(warmup + seconds)
            self.stop.set()
            return sum(began <= when <= began + seconds for when in self.got) / seconds

    return Clients


# The limits, in bytes per second.


def limits(clients: int, sizes: Sizes, window: Window, root: Path) -> dict[str, float]:
    """Bytes per second of each of the three parts alone, with the same number of clients."""
    threads = min(clients, THREADS)
    parts = (sizes.latents, sizes.candidate - sizes.latents)
    data = [os.urandom(size) for size in parts]
    with TemporaryDirectory(dir=root) as folder:
        return {
            "ZeroMQ loopback": _loopback(clients, sizes, Window(1.0, window.limit)),
            "hash": _parallel(threads, window.limit, lambda: _hash(data)),
            "write + fsync": _parallel(threads, window.limit, lambda: _write(Path(folder), data)),
        }


def _loopback(clients: int, sizes: Sizes, window: Window) -> float:
    """Bytes per second of candidates' frames that a bare loop on a thread receives and answers."""
    stop = Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind("tcp://127.0.0.1:*")
        address = socket.getsockopt_string(zmq.LAST_ENDPOINT)

        def answer() -> None:
            while not stop.is_set():
                if socket.poll(20):
                    peer = socket.recv_multipart(copy=False)[0]
                    socket.send_multipart([peer, b""])

        thread = Thread(target=answer, daemon=True)
        thread.start()
        try:
            who = {f"worker-{place}": "" for place in range(clients)}
            return drive(address, who, sizes, window, os.getpid(), raw=True).rate("bytes")
        finally:
            stop.set()
            thread.join()


def _parallel(threads: int, seconds: float, work: Callable[[], int]) -> float:
    """Bytes per second of `work`, called in a loop on each of `threads` threads."""
    began = time.monotonic()

    def loop(_: int) -> int:
        done = 0
        while time.monotonic() < began + seconds:
            done += work()
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(loop, range(threads)))
    return done / (time.monotonic() - began)


def _hash(data: Sequence[bytes]) -> int:
    for part in data:
        digest(part)
    return sum(map(len, data))


def _write(folder: Path, data: Sequence[bytes]) -> int:
    """Write and fsync new files like the exchange."""
    for part in data:
        with (folder / token_hex(8)).open("xb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, len(part))
            file.write(part)
            os.fsync(file.fileno())
    return sum(map(len, data))


# The report.


def measure_case(clients: int, rounds: int, sizes: Sizes, window: Window, root: Path) -> tuple[list[Row], list[Aim]]:
    """The rows and targets for one number of clients."""
    mine: list[Measurements] = []
    theirs: list[float] = []
    most: list[dict[str, float]] = []
    for _ in range(rounds):
        mine.append(ours(clients, sizes, window, root))
        theirs.append(ray_queue(clients, sizes, window))
        most.append(limits(clients, sizes, window, root))
    items = [one.rate("bytes") / (sizes.group / GROUP) for one in mine]
    limit = [min(one.values()) for one in most]
    share = ratio([one.rate("bytes") for one in mine], limit)
    times = ratio(items, theirs)
    of = f"{clients} client{'s' * (clients > 1)}"
    rows = [
        Row(f"{of}: groups durable", "groups/s", median(one.rate("group") for one in mine)),
        Row(f"{of}: candidates durable; Ray's queue is not durable", "candidates/s", median(items), median(theirs),
            median(limit) / (sizes.group / GROUP), times),
        Row(f"{of}: bytes durable, ratio to the limit", "MB/s", median(one.rate("bytes") for one in mine) / 1e6, None,
            median(limit) / 1e6, share),
        *(Row(f"{of}: limit, {name}", "MB/s", median(one[name] for one in most) / 1e6) for name in most[0]),
        *(Row(f"{of}: {name}, {share}", "ms", 1e3 * _quantile(mine, name, place))
          for name in LEASES for share, place in (("p50", 50), ("p99", 99))),
        Row(f"{of}: processor, exchange", "cores", median(one.service_cpu for one in mine)),
        Row(f"{of}: processor, clients", "cores", median(one.clients_cpu for one in mine)),
    ]  # fmt: skip
    return rows, [
        Aim(f"{of}: candidates/s to Ray's queue", times.median, "at least 5", times.median >= 5),
        Aim(f"{of}: bytes/s to the limit", share.median, "at least 0.5", share.median >= 0.5),
    ]


def _quantile(seen: Sequence[Measurements], kind: str, percent: int) -> float:
    values = [value for one in seen for value in one.values.get(kind, ())]
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else float("nan")


def measure(given: argparse.Namespace, sizes: Sizes | None = None, window: Window | None = None) -> Report:
    """Measure every number of clients, in rounds of ours, Ray's queue and the limits."""
    sizes, window = sizes or Sizes(), window or Window()
    given.root.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    aims: list[Aim] = []
    for clients in given.clients:
        more, promised = measure_case(clients, given.rounds, sizes, window, given.root)
        alone = generator(clients, sizes, window).rate("bytes") / 1e6
        rows += [*more, Row(f"{clients} clients alone, against a service that keeps nothing", "MB/s", alone)]
        aims += promised if clients == max(given.clients) else promised[1:]
    return Report("exchange", rows, aims, ("pyzmq", "msgpack", "ray"))


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--clients", {"type": int, "nargs": "+", "default": list(CLIENTS), "help": "numbers of clients"}),
    ("--rounds", {"type": int, "default": ROUNDS, "help": "rounds of ours, Ray's queue, limits"}),
    ("--root", {"type": Path, "default": Path("runs"), "help": "folder on the disk to measure (default: runs)"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
