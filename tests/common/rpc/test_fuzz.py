"""Fuzzing: a service answers every malformed message and still serves well-behaved clients.

The messages are mutations (`tests/support/mutations.py`, seeded) of real ones, of every call of every interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from threading import Event, Thread
from typing import Any

import msgpack
import pytest
import zmq

from common.errors import NotFoundError
from common.exchange.api import Work, WorkerExchange
from common.exchange.remote import RemoteExchange
from common.messages import LogEntry, Score, Span, StepStats, TrainingFinished
from common.rpc import client as rpc
from common.rpc.client import Client, Unreachable
from common.rpc.codec import Frames, WireError, pack, unpack
from common.rpc.interface import calls
from common.weights.source import RemoteWeights, WeightSource
from common.weights.tensor_file import file_size
from deploy.run_dir.journal import WorkerJournal
from deploy.runtime.workers.remote_journal import RemoteJournal
from tests.support.exchange.fakes import (
    array,
    candidate,
    conditioning,
    score,
    weight_version,
)
from tests.support.hosting import Hosted, hosted
from tests.support.mutations import bombs, mutated

MESSAGES = 100_000  # to services
IN_FLIGHT = 24  # of them at once, fewer than a connection can queue
ANSWERS = 20_000  # mutated replies that a client reads
GROWTH = 400  # MiB that the services' process may grow by: the most expensive header (250) and some cached replies
WAIT = 20_000  # ms
FILES = {"ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal", "ledger.lock", "blobs", "snapshots", "weights"}
FILES |= {"metrics.jsonl", "timeline.jsonl"}
BY_TARGET = {
    "ValueError",
    "ConfigError",
    "NotFoundError",
    "LookupError",
    "OverflowError",
    "OSError",
}  # errors of well-formed requests
CLIENTS: dict[str, type[Client]] = {"exchange": RemoteExchange, "journal": RemoteJournal, "weights": RemoteWeights}
INTERFACES = {"exchange": WorkerExchange, "journal": WorkerJournal, "weights": WeightSource}


# Real messages.


class Tap:
    """A socket that records its messages."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket, self.kept = socket, []

    def send_multipart(self, frames: list[bytes], copy: bool = True) -> None:
        self.kept.append(frames)
        self.socket.send_multipart(frames, copy=copy)

    def recv_multipart(self) -> list[bytes]:
        self.kept.append(self.socket.recv_multipart())
        return self.kept[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)


def tapped(client: Client) -> Any:
    client._socket = Tap(client._socket)  # type: ignore[assignment]
    return client


def work(exchange: WorkerExchange) -> None:
    """Every call of the exchange."""
    for _ in range(2):
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        exchange.submit_conditioning(lease, conditioning(lease.prompt))
        for index in range(2):
            exchange.submit_candidate(lease, candidate(lease, index))
    tasks = exchange.lease_candidates("rewarder-0", 16)
    exchange.submit_scores("rewarder-0", [score(task, 10.0 * place) for place, task in enumerate(tasks)])
    pairs = exchange.lease_batch("learner-0", 1, 2)
    assert len(pairs) == 2
    exchange.commit_step(1, [one.ordinal for one in pairs])
    exchange.announce(weight_version(1, 1, 1))
    exchange.record_checkpoint(1)
    exchange.rollback(1)
    assert not exchange.refresh_due(1)
    exchange.keep_empty_prompt(array(b"empty"))
    lease = exchange.lease_sampling("sampler-0", 1)
    assert lease is not None
    exchange.fail_sampling(lease, "broken image")
    exchange.renew("sampler-0")
    exchange.changes(Work.SAMPLING, 0)
    assert (exchange.next_version(), exchange.wanted_version()) == (2, 1)
    assert exchange.empty_prompt() == array(b"empty")


def report(journal: WorkerJournal) -> None:
    journal.step(StepStats(1, 0.5, 0.5, 1e-5, 0.0, 1, 0.5, 1.0, False, True, {"gap": 0.5}))
    journal.span(Span("sampler-0", "sampling", 1.0, 2.0))
    journal.trained(TrainingFinished(1, 1, "0" * 32))
    journal.exporting("sampler-0", "127.0.0.1:9000")
    journal.not_finite("learner-0")
    journal.log("sampler-0", [LogEntry(1.0, 30, "actors.loop", "group 17 returned")])


def fetch(weights: WeightSource) -> None:
    assert list(weights.versions()) == [0]
    manifest = weights.manifest(0)
    assert len(weights.chunk(0, 0)) == file_size(manifest.tensors)
    assert weights.delta(0, manifest.digest, {7: manifest.digest}) is None
    with pytest.raises(NotFoundError, match="no delta"):
        weights.delta_chunk(manifest.digest, manifest.digest, 0)


WORK: dict[str, Callable[[Any], None]] = {"exchange": work, "journal": report, "weights": fetch}


def captured(run: Hosted) -> dict[str, list[list[bytes]]]:
    """Requests and replies of every call, by service: request, reply, request, ..."""
    kept = {}
    for name, kind in CLIENTS.items():
        with kind(run.addresses[name], "tester", timeout=10) as client:
            WORK[name](tapped(client))
            kept[name] = client._socket.kept  # type: ignore[attr-defined]
        asked = {unpack(frames).header["call"] for frames in kept[name][::2]}
        assert asked == set(calls(INTERFACES[name]))
    return kept


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with hosted(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(scope="module")
def messages(run: Hosted) -> dict[str, list[list[bytes]]]:
    return captured(run)


# Against the service.


class WellBehavedClient:
    """A worker that checks its replies while others send malformed messages."""

    def __init__(self, run: Hosted, stack: ExitStack) -> None:
        made = {name: kind(run.addresses[name], "well-behaved", timeout=20) for name, kind in CLIENTS.items()}
        for client in made.values():
            stack.enter_context(client)
        self.exchange, self.journal, self.weights = (made[name] for name in CLIENTS)
        self.file: bytes = self.weights.chunk(0, 0)  # type: ignore[attr-defined]
        self.served = 0

    def works(self) -> None:
        exchange: Any = self.exchange
        weights: Any = self.weights
        scores = [Score(f"unknown-{self.served}-{place}", "heads", {"motion": float(place)}) for place in range(3)]
        assert [one.reason for one in exchange.submit_scores("well-behaved", scores)] == ["unknown candidate"] * 3
        step = 10**6 + self.served
        with pytest.raises(ValueError, match=f"step {step}: "):
            exchange.commit_step(step, [1])  # never leased; the error names the step
        assert exchange.next_version() >= 0
        assert weights.chunk(0, 0) == self.file
        with pytest.raises(ValueError, match=f"offset {self.served + 1}: a multiple of"):
            weights.chunk(0, self.served + 1)
        self.journal.span(Span("well-behaved", "testing", float(self.served), 0.0))  # type: ignore[attr-defined]
        self.served += 1


def attack(socket: zmq.Socket[bytes], messages: Sequence[list[bytes]]) -> Counter[str]:
    """Send all messages and read a reply to each. Counts the replies by the error's name."""
    waiting, answers = 0, Counter()
    for frames in [*messages, *[None] * IN_FLIGHT]:
        if frames is not None:
            socket.send_multipart(frames)
            waiting += 1
        if waiting and (frames is None or waiting == IN_FLIGHT):
            header = unpack(socket.recv_multipart()).header
            answers[header.get("error", "")] += 1
            waiting -= 1
    return answers


def tampered(messages: Sequence[list[bytes]], random: Random, count: int) -> Iterator[list[bytes]]:
    """Mutations of `messages`, each from a new client, so that no reply comes from the cache."""
    requests = [(msgpack.unpackb(header), blobs) for header, *blobs in messages[::2]]
    for _ in range(count):
        header, blobs = random.choice(requests)
        fresh = header | {"client": f"{random.getrandbits(64):x}", "id": random.randrange(9)}
        yield mutated([msgpack.packb(fresh), *blobs], random)


@contextmanager
def attacking(run: Hosted) -> Iterator[dict[str, zmq.Socket[bytes]]]:
    with zmq.Context() as context, ExitStack() as stack:
        sockets = {name: stack.enter_context(context.socket(zmq.DEALER)) for name in CLIENTS}
        for name, socket in sockets.items():
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, WAIT)  # after that, zmq.Again: the service does not answer
            socket.connect(run.addresses[name])
        yield sockets


def test_a_service_survives_malformed_requests(run: Hosted, messages: dict[str, list[list[bytes]]]) -> None:
    random, memory, answers = Random(20), run.memory, Counter[str]()
    share = {"exchange": 1200, "journal": 400, "weights": 400}
    before = sum(run.counts().values())
    with attacking(run) as sockets, ExitStack() as stack:
        client = WellBehavedClient(run, stack)
        while answers.total() < MESSAGES:
            for name, count in share.items():
                answers += attack(sockets[name], list(tampered(messages[name], random, count)))
            client.works()
        for name in ("exchange", "weights"):
            for bomb in bombs():
                assert attack(sockets[name], [bomb]) == {"WireError": 1}
                client.works()
    assert sum(run.counts().values()) - before >= MESSAGES
    assert client.served >= MESSAGES / 2000
    assert answers["WireError"] > 0.5 * MESSAGES  # most are malformed
    assert answers[""] > 0.02 * MESSAGES  # some are still valid
    assert set(answers) <= {"", "WireError", *BY_TARGET}
    assert run.peak - memory < GROWTH
    run.check()
    assert {path.name for path in run.folder.iterdir()} <= FILES  # no name in a message became a path
    assert list(run.folder.parent.glob("douga-*")) == []
    print(f"{answers}; peak +{run.peak - memory:.0f} MiB, at the end +{run.memory - memory:.0f} MiB")


def test_expensive_headers_are_decoded_one_at_a_time(run: Hosted) -> None:
    """Sixteen at once over separate connections. Each takes a hundred times its size in memory when it is decoded."""
    maps = [{f"{key:x}": 0 for key in range(1 << 13)}] * 64
    header = {"schema": 1, "id": 1, "call": "submit_scores", "body": ["well-behaved", maps], "blobs": []}
    before = run.memory
    with zmq.Context() as context, ExitStack() as stack:
        sockets = [stack.enter_context(context.socket(zmq.DEALER)) for _ in range(16)]
        for place, socket in enumerate(sockets):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, WAIT)
            socket.connect(run.addresses["exchange"])
            frame = msgpack.packb(header | {"client": f"expensive-{place}"})
            assert len(frame) < 4 << 20
            socket.send(frame)
        for socket in sockets:
            assert unpack(socket.recv_multipart()).header["error"] == "WireError"
    assert run.peak - before < GROWTH + 250
    print(f"grew by {run.peak - before:.0f} MiB")


# Against the client.


def read(answer: list[bytes], name: str, call: str) -> None:
    """Decode a reply like a client: to a value of the right type, or to one of its errors."""
    with suppress(*rpc.ERRORS.values(), rpc.ServiceFailed):
        client: Any = Client.__new__(CLIENTS[name])
        client._read(calls(INTERFACES[name])[call], unpack(answer))


def test_a_client_rejects_malformed_replies(messages: dict[str, list[list[bytes]]]) -> None:
    random = Random(21)
    pairs = [
        (name, unpack(request).header["call"], answer)
        for name, kept in messages.items()
        for request, answer in zip(kept[::2], kept[1::2], strict=True)
    ]
    for _ in range(ANSWERS):
        name, call, answer = random.choice(pairs)
        read(mutated(answer, random), name, call)
    for bomb in bombs():
        read(bomb, "exchange", "lease_batch")


class HostileServer:
    """A server on a thread that sends arbitrary replies."""

    def __init__(self, answers: Callable[[Frames], Sequence[list[bytes]]]) -> None:
        self._answers, self._stop = answers, Event()
        self._thread = Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(20):
                peer, *request = self._socket.recv_multipart()
                for answer in self._answers(unpack(request)):
                    self._socket.send_multipart([peer, *answer])

    def __enter__(self) -> str:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("tcp://127.0.0.1:*")
        self._thread.start()
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()


def test_a_client_survives_a_hostile_server(
    messages: dict[str, list[list[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    random = Random(22)
    answers = {unpack(one).header["call"]: other for one, other in zip(*[iter(messages["exchange"])] * 2, strict=True)}

    def answer(request: Frames) -> list[list[bytes]]:
        number = request.header["id"]
        header, *blobs = answers[request.header["call"]]
        mine = [msgpack.packb(msgpack.unpackb(header) | {"id": number}), *blobs]
        return [mutated(mine, random), mutated(mine, random), pack({"id": number, "error": "End", "message": "of it"})]

    ended = {"value": 0, "error": 0}
    with HostileServer(answer) as address, RemoteExchange(address, "victim", timeout=10) as exchange:
        for place in range(3000):
            call: Any = (exchange.wanted_version, exchange.next_version, exchange.empty_prompt)[place % 3]
            try:
                call()
                ended["value"] += 1
            except (WireError, Unreachable, rpc.ServiceFailed, *rpc.ERRORS.values()):
                ended["error"] += 1
    assert ended["error"] > 1000


def test_replies_to_other_requests_do_not_delay_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends only replies to other requests counts as silent."""
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    stop = Event()

    def endless(request: Frames) -> Iterator[list[bytes]]:
        while not stop.wait(0.02):
            yield pack({"id": -1})

    with HostileServer(endless) as address, RemoteExchange(address, "victim", timeout=0.3) as exchange:  # type: ignore[arg-type]
        with pytest.raises(Unreachable, match=r"victim: next_version: no answer from .* in 0\.3 s"):
            exchange.next_version()
        stop.set()
