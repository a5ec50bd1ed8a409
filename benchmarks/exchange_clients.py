"""The processes of `benchmarks.exchange`: an exchange, and clients that load it.

```
python -m benchmarks.exchange_clients serve   JSON   ──> its address;  <── end of input: it is audited and ends
python -m benchmarks.exchange_clients clients JSON   ──> "ready";  <── time to stop;  ──> {kind: [[when, value], ...]}
```

A client is a thread with its own `RemoteExchange`. It makes the same calls as a sampler, a rewarder or the learner, but
without models: results are submitted right after the lease.
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
from common.messages import Candidate, Conditioning, Prompt, SamplingLease, Score, SerializedTensor, candidate_id
from common.rpc.server import serving

GROUP, PAIRS, CLIPS = 4, 8, 8  # candidates per group, pairs per step, clips per lease
LATENTS = 0.56  # fraction of a candidate's bytes: 13 x 16 x 60 x 90 in bfloat16 of 4 MB
IDLE_SECONDS = 0.02  # pause of a client without work
MAX_BYTES = 4_000_000_000  # blobs on disk
FOREVER = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """Bytes that a sampler submits. The defaults are for CogVideoX-5B at 49 frames of 480 x 720."""

    candidate: int = 4_000_000  # latents and clip
    conditioning: int = 2_024_448  # per group: 226 x 4096 and 16 x 60 x 90 in bfloat16
    image: int = 400_000  # per group: the first frame

    @property
    def group(self) -> int:
        """Bytes on disk of a group's candidates and conditioning."""
        return GROUP * self.candidate + self.conditioning

    @property
    def latents(self) -> int:
        """Bytes of a candidate's latents; the rest is its clip."""
        return int(LATENTS * self.candidate)


class Noise:
    """Random bytes, different each time, for the cost of one copy: windows of a random buffer."""

    def __init__(self, largest: int) -> None:
        self._buffer, self._largest, self._next = memoryview(os.urandom(2 * largest + (1 << 20))), largest, count()

    def __call__(self, size: int) -> bytes:
        start = 16 * next(self._next) % (len(self._buffer) - self._largest)
        return bytes(self._buffer[start : start + size])


# The exchange, in a process without clients, so that they do not share the GIL.


def settings(samplers: int) -> RunConfig:
    """An endless run in which only the disk limit and the workers themselves slow anything down."""
    flags = {
        "sampler.candidates": GROUP, "sampler.micro_batch": GROUP, "steps": FOREVER,
        "learner.batch_size": PAIRS, "learner.steps_per_push": 1, "learner.checkpoint_every": 1,
        "learner.keep_checkpoints": 1, "exchange.max_lag": FOREVER, "exchange.max_bytes": MAX_BYTES,
        "exchange.pipeline_depth": 2 * samplers + PAIRS, "exchange.lease_seconds": 3600,
    }  # fmt: skip
    return load_config(flags=flags)


class NullExchange:
    """An exchange that accepts everything and stores nothing, to measure the clients alone."""

    def lease_sampling(self, worker: str, version: int) -> SamplingLease:
        """Always the same group."""
        indices = tuple(range(GROUP))
        return SamplingLease(Prompt(0, "0", "a cat"), worker, 1, version, seeds=indices, indices=indices)

    def submit_conditioning(self, lease: SamplingLease, conditioning: Conditioning) -> Submitted:
        """Accept it."""
        return Submitted(True)

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> Submitted:
        """Accept it."""
        return Submitted(True)


def serve(folder: str | None, samplers: int, sizes: dict[str, int]) -> None:
    """Serve an exchange in `folder` until standard input ends, then audit it. None serves a `NullExchange`."""
    noise, size = Noise(sizes["image"]), sizes["image"]

    def source(ordinal: int) -> Prompt:
        return Prompt(ordinal, f"{ordinal}", "a cat", noise(size))

    exchange: Any = NullExchange() if folder is None else LocalExchange(Path(folder), settings(samplers), source)
    with serving(exchange_service(exchange)) as service:
        print(service.address, flush=True)
        sys.stdin.read()
    if folder is not None:
        exchange.check()
        exchange.close()


# Clients.


class Client:
    """One worker's thread: its connection, its duties and its measurements."""

    def __init__(self, address: str, name: str, duties: str, sizes: Sizes) -> None:
        """`duties`: letters of s (sampler), r (rewarder), l (learner), one after the other."""
        self.name, self.seen, self.step = name, defaultdict(list), 0
        self._noise, self._sizes = Noise(max(asdict(sizes).values())), sizes
        self._exchange = RemoteExchange.at(address, name)
        self._duties: list[Callable[[], bool]] = [
            {"s": self.sample, "r": self.score, "l": self.learn}[letter] for letter in duties
        ]

    def run(self, stop: Event) -> None:
        """Repeat all duties until told to stop."""
        with self._exchange:
            while not stop.is_set():
                if not any([duty() for duty in self._duties]):
                    stop.wait(IDLE_SECONDS)

    def record(self, kind: str, value: float) -> None:
        """Record a measurement with its time."""
        self.seen[kind].append((time.monotonic(), value))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Record the duration of a call in seconds."""
        began = time.monotonic()
        yield
        self.record(kind, time.monotonic() - began)

    def sample(self) -> bool:
        """Lease candidates, submit them, and the conditioning of their group."""
        with self.timed("lease_sampling"):
            lease = self._exchange.lease_sampling(self.name, 0)
        if lease is None:
            return False
        if not lease.encoded:
            conditioning = Conditioning(self._array(self._sizes.conditioning), None)
            self._check_accepted(self._exchange.submit_conditioning(lease, conditioning))
            self.record("bytes", self._sizes.conditioning)
        for index in lease.indices:
            self._check_accepted(self._exchange.submit_candidate(lease, self._candidate(lease, index)))
            self.record("bytes", self._sizes.candidate)
        self.record("group", len(lease.indices) / GROUP)
        return True

    def _check_accepted(self, answer: Submitted) -> None:
        if not answer.accepted:
            raise RuntimeError(f"{self.name}: not accepted: {answer.reason}")

    def _array(self, size: int) -> SerializedTensor:
        return SerializedTensor("uint8", (size,), self._noise(size))

    def _candidate(self, lease: SamplingLease, index: int) -> Candidate:
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
        """Score some clips. Scores differ within a group, so that each group gives a pair."""
        with self.timed("lease_candidates"):
            tasks = self._exchange.lease_candidates(self.name, CLIPS)
        scores = [
            Score(task.candidate_id, "1", dict.fromkeys(DIMENSIONS, 10.0 + task.clip[0] % 80), purpose=task.purpose)
            for task in tasks
        ]
        if scores:
            self._exchange.submit_scores(self.name, scores)
        return bool(scores)

    def learn(self) -> bool:
        """One step, with its checkpoint: blobs of trained pairs are freed."""
        with self.timed("lease_batch"):
            groups = self._exchange.lease_batch(self.name, self.step + 1, PAIRS)
        if not groups:
            return False
        self.step += 1
        self._exchange.commit_step(self.step, [one.ordinal for one in groups])
        self._exchange.record_checkpoint(self.step)
        return True


class RawClient:
    """Sends a candidate's frames over a bare socket and waits for an empty answer, to measure ZeroMQ alone."""

    def __init__(self, address: str, name: str, duties: str, sizes: Sizes) -> None:
        self.seen = defaultdict(list)
        self._frames = [b"h" * 512, bytes(sizes.latents), bytes(sizes.candidate - sizes.latents)]
        self._address = address

    def run(self, stop: Event) -> None:
        """Send one message after the other until told to stop."""
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
    """Run one client per entry of `duties` until the time (`time.monotonic`) read from standard input."""
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
        one.result()  # raises the error of a failed client
    seen: dict[str, list[Any]] = defaultdict(list)
    for client in each:
        for what, values in client.seen.items():
            seen[what] += values
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    {"serve": serve, "clients": clients}[sys.argv[1]](**json.loads(sys.argv[2]))
