"""Clients that keep an exchange busy, and the exchange: processes of their own for `benchmarks.exchange`.

```
python -m benchmarks.exchange_clients serve   JSON   ──> its address;  <── end of input: it is audited and ends
... exchange_clients clients JSON   ──> "ready";  <── the time to stop at;  ──> {kind: [[when, value], ...]}
```

A client is a thread with a `RemoteExchange` of its own that does the duties of a sampler, a rewarder or the learner in
turn, as the workers do them, without the models: no time passes between a lease and its results.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import zmq

from common.config import DIMENSIONS, RunConfig, load_config
from common.exchange.api import Submitted
from common.exchange.local import LocalExchange
from common.exchange.remote import RemoteExchange, exchange_service
from common.messages import Candidate, Conditioning, GroupLease, Prompt, Score, SerializedTensor, candidate_id
from common.rpc.server import serving

GROUP, PAIRS, CLIPS = 4, 8, 8  # candidates of a group, pairs of a step, clips of one lease
LATENTS = 0.56  # share of a candidate's bytes: 13 x 16 x 60 x 90 in bfloat16 of 4 MB
IDLE_SECONDS = 0.02  # of a client that finds nothing to do
MAX_BYTES = 4_000_000_000  # blobs on disk
FOREVER = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a sampler submits. The defaults are CogVideoX-5B's at 49 frames of 480 x 720."""

    candidate: int = 4_000_000  # latents and clip
    conditioning: int = 2_024_448  # per group: 226 x 4096 and 16 x 60 x 90 in bfloat16
    image: int = 400_000  # per group: the first frame

    @property
    def group(self) -> int:
        """What a group's candidates and conditioning put on the disk."""
        return GROUP * self.candidate + self.conditioning

    @property
    def latents(self) -> int:
        """Of one candidate; the rest is its clip."""
        return int(LATENTS * self.candidate)


class Noise:
    """Bytes that differ each time, at the price of one copy: windows of one random buffer."""

    def __init__(self, largest: int) -> None:
        self._buffer, self._largest, self._next = memoryview(os.urandom(2 * largest + (1 << 20))), largest, count()

    def __call__(self, size: int) -> bytes:
        start = 16 * next(self._next) % (len(self._buffer) - self._largest)
        return bytes(self._buffer[start : start + size])


# What is measured: in its own process, so that it shares no interpreter with the clients.


def settings(samplers: int) -> RunConfig:
    """A run without end in which nothing waits for anything but the disk's bound and its own workers."""
    flags = {
        "sampler.candidates": GROUP, "steps": FOREVER,
        "learner.pairs_per_step": PAIRS, "learner.steps_per_push": 1, "learner.checkpoint_every": 1,
        "learner.keep_checkpoints": 1, "exchange.max_lag": FOREVER, "exchange.max_bytes": MAX_BYTES,
        "exchange.pipeline_depth": 2 * samplers + PAIRS, "exchange.lease_seconds": 3600,
    }  # fmt: skip
    return load_config(flags=flags)


class Nothing:
    """An exchange that takes everything and keeps nothing: what the clients can do at most."""

    def lease_group(self, worker: str, version: int) -> GroupLease:
        """Always the same group."""
        return GroupLease(Prompt(0, "0", "a cat"), worker, 1, version, tuple(range(GROUP)))

    def submit_conditioning(self, lease: GroupLease, conditioning: Conditioning) -> Submitted:
        """Taken."""
        return Submitted(True)

    def submit_candidate(self, lease: GroupLease, candidate: Candidate) -> Submitted:
        """Taken."""
        return Submitted(True)


def serve(folder: str | None, samplers: int, sizes: dict[str, int]) -> None:
    """Serve an exchange in `folder` (None: one that keeps nothing) until standard input ends; then audit it."""
    noise, size = Noise(sizes["image"]), sizes["image"]

    def source(ordinal: int) -> Prompt:
        return Prompt(ordinal, f"{ordinal}", "a cat", noise(size))

    exchange: Any = Nothing() if folder is None else LocalExchange(Path(folder), settings(samplers), source)
    with serving(exchange_service(exchange)) as service:
        print(service.address, flush=True)
        sys.stdin.read()
    if folder is not None:
        exchange.check()
        exchange.close()


# Who measures.


class Client:
    """One worker's thread: its connection, its duties and what it saw."""

    def __init__(self, address: str, name: str, duties: str, sizes: Sizes) -> None:
        """`duties`: letters of s (sampler), r (rewarder), l (learner), done in turn."""
        self.name, self.seen, self.step = name, defaultdict(list), 0
        self._noise, self._sizes = Noise(max(asdict(sizes).values())), sizes
        self._exchange = RemoteExchange.at(address, name)
        self._duties: list[Callable[[], bool]] = [
            {"s": self.sample, "r": self.score, "l": self.learn}[letter] for letter in duties
        ]

    def run(self, stop: Event) -> None:
        """All duties in turn until told to stop."""
        with self._exchange:
            while not stop.is_set():
                if not any([duty() for duty in self._duties]):
                    stop.wait(IDLE_SECONDS)

    def saw(self, kind: str, value: float) -> None:
        """Note a measurement with its time."""
        self.seen[kind].append((time.monotonic(), value))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Note how long a call took, in seconds."""
        began = time.monotonic()
        yield
        self.saw(kind, time.monotonic() - began)

    def sample(self) -> bool:
        """One group: lease, conditioning, candidates."""
        with self.timed("lease_group"):
            lease = self._exchange.lease_group(self.name, 0)
        if lease is None:
            return False
        conditioning = Conditioning(self._array(self._sizes.conditioning), None)
        self._taken(self._exchange.submit_conditioning(lease, conditioning))
        self.saw("bytes", self._sizes.conditioning)
        for index in range(len(lease.seeds)):
            self._taken(self._exchange.submit_candidate(lease, self._candidate(lease, index)))
            self.saw("bytes", self._sizes.candidate)
        self.saw("group", 1)
        return True

    def _taken(self, answer: Submitted) -> None:
        if not answer.accepted:
            raise RuntimeError(f"{self.name}: not accepted: {answer.reason}")

    def _array(self, size: int) -> SerializedTensor:
        return SerializedTensor("uint8", (size,), self._noise(size))

    def _candidate(self, lease: GroupLease, index: int) -> Candidate:
        ordinal, latents = lease.prompt.ordinal, self._sizes.latents
        return Candidate(
            id=candidate_id(ordinal, index, lease.version),
            ordinal=ordinal,
            index=index,
            seed=lease.seeds[index],
            policy_version=lease.version,
            latents=self._array(latents),
            clip=self._noise(self._sizes.candidate - latents),
        )

    def score(self) -> bool:
        """Some clips; the scores of a group differ, so that each makes a pair."""
        with self.timed("lease_candidates"):
            tasks = self._exchange.lease_candidates(self.name, CLIPS)
        scores = [Score(task.candidate_id, "1", dict.fromkeys(DIMENSIONS, 10.0 + task.clip[0] % 80)) for task in tasks]
        if scores:
            self._exchange.submit_scores(self.name, scores)
        return bool(scores)

    def learn(self) -> bool:
        """One step, with its checkpoint: blobs of trained pairs are freed."""
        with self.timed("lease_pairs"):
            pairs = self._exchange.lease_pairs(self.name, self.step + 1, PAIRS)
        if not pairs:
            return False
        self.step += 1
        self._exchange.commit_step(self.step, [one.pair.ordinal for one in pairs])
        self._exchange.mark(self.step)
        return True


class RawClient:
    """Sends a candidate's frames over a bare socket and waits for an empty answer: what ZeroMQ does at most."""

    def __init__(self, address: str, name: str, duties: str, sizes: Sizes) -> None:
        self.seen = defaultdict(list)
        self._frames = [b"h" * 512, bytes(sizes.latents), bytes(sizes.candidate - sizes.latents)]
        self._address = address

    def run(self, stop: Event) -> None:
        """One message after the other until told to stop."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._address)
            while not stop.is_set():
                socket.send_multipart(self._frames, copy=False)
                while not socket.poll(100):
                    if stop.is_set():
                        return
                socket.recv_multipart()
                self.seen["bytes"].append((time.monotonic(), sum(map(len, self._frames))))


def clients(address: str, duties: dict[str, str], sizes: dict[str, int], raw: bool) -> None:
    """Run one client per entry of `duties` until the time (`time.monotonic`) that standard input gives."""
    kind = RawClient if raw else Client
    each = [kind(address, name, what, Sizes(**sizes)) for name, what in duties.items()]
    stop = Event()
    print("ready", flush=True)
    until = float(sys.stdin.readline())
    with ThreadPoolExecutor(len(each)) as pool:
        running = [pool.submit(client.run, stop) for client in each]
        wait(running, max(0.0, until - time.monotonic()), FIRST_EXCEPTION)
        stop.set()
    for one in running:
        one.result()  # a client that failed ends the measurement
    seen: dict[str, list[Any]] = defaultdict(list)
    for client in each:
        for what, values in client.seen.items():
            seen[what] += values
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    {"serve": serve, "clients": clients}[sys.argv[1]](**json.loads(sys.argv[2]))
