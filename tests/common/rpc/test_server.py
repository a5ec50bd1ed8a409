"""A service with many clients: order per client, retries of running requests, small before large, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from threading import Event, Lock, Thread
from typing import Any, Protocol

import pytest
import zmq

from common.rpc import client as rpc
from common.rpc import server as serving_side
from common.rpc.client import Client, Unreachable, calling
from common.rpc.codec import pack, unpack
from common.rpc.interface import repeatable
from common.rpc.server import Service, serving

SECONDS = 20  # timeout of every wait


class Calls(Protocol):
    """The interface of these tests."""

    def note(self, who: str, number: int) -> int:
        """Returns `number`."""
        ...

    def hold(self, name: str) -> str:
        """Returns `name` once that hold is released."""
        ...

    def keep(self, name: str, data: bytes) -> str:
        """Like `hold`, with bytes."""
        ...

    @repeatable
    def look(self, name: str) -> str:
        """Like `hold`, but repeatable."""
        ...


class HeldCalls:
    """Calls that end when the test releases them. Records what began and what ended, in order."""

    def __init__(self) -> None:
        self.lock, self.noted, self.began, self.ended = Lock(), [], [], []
        self.begins: dict[str, Event] = {}
        self.releases: dict[str, Event] = {}

    def begin(self, name: str) -> Event:
        with self.lock:
            return self.begins.setdefault(name, Event())

    def release(self, name: str) -> Event:
        with self.lock:
            return self.releases.setdefault(name, Event())

    def note(self, who: str, number: int) -> int:
        with self.lock:
            self.noted.append((who, number))
        return number

    def hold(self, name: str) -> str:
        with self.lock:
            self.began.append(name)
        self.begin(name).set()
        assert self.release(name).wait(SECONDS)
        with self.lock:
            self.ended.append(name)
        return name

    def keep(self, name: str, data: bytes) -> str:
        return self.hold(name)

    def look(self, name: str) -> str:
        return self.hold(name)


@calling(Calls)
class RemoteCalls(Client, Calls):
    """A client of `Calls`."""


@pytest.fixture
def target() -> HeldCalls:
    return HeldCalls()


@contextmanager
def served(target: HeldCalls, threads: int) -> Iterator[Service]:
    with serving(Service(Calls, target, threads=threads)) as service:
        yield service


@contextmanager
def line(service: Service) -> Iterator[zmq.Socket[bytes]]:
    """A raw connection, which can send requests without waiting for replies."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 1000 * SECONDS)
        socket.connect(service.address)
        yield socket


def ask(socket: zmq.Socket[bytes], number: int, call: str, *arguments: Any, client: str = "c") -> None:
    socket.send_multipart(pack({"client": client, "id": number, "call": call}, list(arguments)))


def answer(socket: zmq.Socket[bytes]) -> tuple[int, Any]:
    header = unpack(socket.recv_multipart()).header
    return header["id"], header["message"] if "error" in header else header["body"]


def wait_until_read(socket: zmq.Socket[bytes]) -> None:
    """Wait until all requests sent before over this connection are queued. An unknown call is rejected at once."""
    ask(socket, 0, "unknown_call", client="probe")
    assert "no call 'unknown_call'" in answer(socket)[1]


def test_the_requests_of_one_client_run_in_order(target: HeldCalls) -> None:
    """The first request is held, while seven idle threads could run the others."""
    with served(target, 8) as service, line(service) as socket, line(service) as other:
        ask(socket, 1, "hold", "first")
        assert target.begin("first").wait(SECONDS)
        for number in range(2, 30):
            ask(socket, number, "note", "c", number)
        ask(other, 1, "note", "d", 1, client="d")
        assert answer(other) == (1, 1)  # other clients are served
        assert target.noted == [("d", 1)]
        target.release("first").set()
        assert [answer(socket) for _ in range(29)] == [(1, "first"), *((n, n) for n in range(2, 30))]
        assert target.noted[1:] == [("c", number) for number in range(2, 30)]


def test_a_retry_of_a_running_request_runs_once_and_is_answered_on_the_new_connection(target: HeldCalls) -> None:
    with served(target, 4) as service, line(service) as first, line(service) as second:
        ask(first, 7, "hold", "long")
        assert target.begin("long").wait(SECONDS)
        ask(second, 7, "hold", "long")
        ask(second, 7, "hold", "long")  # no client does this; every message still gets a reply
        assert answer(second) == (7, "request 7 is already running")
        ask(second, 1, "note", "d", 1, client="d")  # answered after the retry was received
        assert answer(second) == (1, 1)
        assert service.counts["repeated"] == 1
        target.release("long").set()
        assert answer(second) == (7, "long")
        assert first.poll(0) == 0
        ask(first, 7, "hold", "long")  # and again after it has finished
        assert answer(first) == (7, "long")
        assert target.began == ["long"]


def test_a_client_that_times_out_still_gets_its_reply(target: HeldCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 1000)
    with served(target, 2) as service, RemoteCalls(service.address, "tester", timeout=0.02) as client:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.hold, "long")
            assert target.begin("long").wait(SECONDS)
            with line(service) as other:
                for number in count():  # until its retries were received
                    ask(other, number, "note", "d", number, client="d")
                    assert answer(other) == (number, number)
                    if service.counts["repeated"] > 2:
                        break
            target.release("long").set()
            assert asked.result(SECONDS) == "long"
        assert target.began == ["long"]


def test_small_requests_overtake_large_ones(target: HeldCalls) -> None:
    with served(target, 1) as service, line(service) as socket:
        ask(socket, 1, "hold", "busy", client="a")
        assert target.begin("busy").wait(SECONDS)
        for name in ("large", "larger"):
            target.release(name).set()
            ask(socket, 1, "keep", name, bytes(serving_side.SMALL_REQUEST + 1), client=name)
        target.release("small").set()
        ask(socket, 1, "keep", "small", b"", client="b")
        ask(socket, 2, "hold", "busy", client="a")  # waits for the earlier request of its client
        wait_until_read(socket)
        target.release("busy").set()
        for _ in range(5):
            answer(socket)
        assert target.began[:2] == ["busy", "small"]
        assert set(target.began[2:]) == {"busy", "large", "larger"}
        assert target.began.index("large") < target.began.index("larger")


def test_one_thread_runs_one_call_at_a_time(target: HeldCalls) -> None:
    with served(target, 1) as service, line(service) as socket:
        for name in "abc":
            ask(socket, 1, "hold", name, client=name)
        for name in "abc":
            assert target.begin(name).wait(SECONDS)
            assert len(target.began) == len(target.ended) + 1
            target.release(name).set()
            assert answer(socket) == (1, name)


def test_stopping_finishes_running_calls_and_drops_queued_ones(
    target: HeldCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    service, stop = Service(Calls, target, threads=1), Event()
    thread = Thread(target=service.serve, args=(stop,))
    thread.start()
    try:
        with RemoteCalls(service.address, "a", timeout=SECONDS) as client, line(service) as socket:
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(client.hold, "running")
                assert target.begin("running").wait(SECONDS)
                ask(socket, 1, "note", "behind", 1)
                wait_until_read(socket)
                stop.set()
                target.release("running").set()
                assert asked.result(SECONDS) == "running"
            thread.join(SECONDS)
            assert not thread.is_alive()
            assert (target.ended, target.noted) == (["running"], [])
    finally:
        target.release("running").set()
        stop.set()
        thread.join(SECONDS)
        service.close()
    with RemoteCalls(service.address, "late", timeout=0.05) as client, pytest.raises(Unreachable):
        client.note("late", 1)


def test_many_concurrent_clients(target: HeldCalls) -> None:
    """64 clients, 8 threads: every client gets its own replies, and every call runs once."""
    asks = 20

    def work(place: int) -> list[int]:
        with RemoteCalls(service.address, f"c{place}", timeout=SECONDS) as client:
            return [client.note(f"c{place}", 100 * place + number) for number in range(asks)]

    with served(target, 8) as service, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(work, range(64)))
        assert service.counts["note"] == 64 * asks
    assert answers == [[100 * place + number for number in range(asks)] for place in range(64)]
    for place in range(64):
        mine = [number for who, number in target.noted if who == f"c{place}"]
        assert mine == answers[place]


# Limits on pending requests.


def test_open_requests_per_client_are_bounded(target: HeldCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_side, "MAX_QUEUED", 4)
    with served(target, 2) as service, line(service) as socket, line(service) as other:
        ask(socket, 1, "hold", "first")
        assert target.begin("first").wait(SECONDS)
        for number in range(2, 8):
            ask(socket, number, "note", "c", number)
        for number in range(5, 8):
            assert answer(socket) == (number, "this client already has 4 open requests, the maximum")
        ask(other, 1, "note", "d", 1, client="d")
        assert answer(other) == (1, 1)
        target.release("first").set()
        assert [answer(socket) for _ in range(4)] == [(1, "first"), (2, 2), (3, 3), (4, 4)]
        ask(socket, 8, "note", "c", 8)
        assert answer(socket) == (8, 8)


@pytest.mark.parametrize(("name", "bound", "most"), [("MAX_PENDING", 5, 5), ("MAX_PENDING_BYTES", 50_000, 6)])
def test_pending_requests_are_bounded_in_total(
    target: HeldCalls, monkeypatch: pytest.MonkeyPatch, name: str, bound: int, most: int
) -> None:
    """Requests that are not read yet wait in the connection and are answered later."""
    monkeypatch.setattr(serving_side, name, bound)
    seen: list[int] = []
    with served(target, 1) as service, line(service) as socket:
        admit = service._admit
        monkeypatch.setattr(service, "_admit", lambda one: (admit(one), seen.append(service._pending_count)))
        for number in range(1, 31):
            ask(socket, number, "keep", "same", bytes(10_000 * (name == "MAX_PENDING_BYTES")), client=f"c{number}")
        assert target.begin("same").wait(SECONDS)
        for _ in range(10_000):
            if len(seen) >= most - 1:
                break
            Event().wait(0.001)
        target.release("same").set()
        assert sorted(answer(socket)[0] for _ in range(30)) == list(range(1, 31))
        assert len(seen) == 30
        assert max(seen) <= most
    assert (service._pending_count, service._pending_bytes, service._pending) == (0, 0, {})


def test_a_request_older_than_a_running_one_is_rejected(target: HeldCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the client's last reply is not cached any more."""
    monkeypatch.setattr(serving_side, "CLIENTS", 1)
    with served(target, 2) as service, line(service) as socket:
        ask(socket, 1, "note", "c", 1)
        assert answer(socket) == (1, 1)
        ask(socket, 1, "note", "d", 1, client="d")  # takes the only place in the reply cache
        assert answer(socket) == (1, 1)
        ask(socket, 2, "hold", "long")
        assert target.begin("long").wait(SECONDS)
        ask(socket, 1, "note", "c", 1)
        assert answer(socket) == (1, "request 1 is older than the last one, 2")
        target.release("long").set()
        assert answer(socket) == (2, "long")
        assert target.noted == [("c", 1), ("d", 1)]


def test_repeatable_calls_do_not_make_other_requests_outdated(target: HeldCalls) -> None:
    """A stream uses a separate connection, so its requests may overtake others and be overtaken."""
    with served(target, 2) as service, line(service) as socket:
        ask(socket, 7, "look", "chunk")
        assert target.begin("chunk").wait(SECONDS)
        ask(socket, 6, "note", "c", 6)
        wait_until_read(socket)
        target.release("chunk").set()
        assert [answer(socket), answer(socket)] == [(7, "chunk"), (6, 6)]


def test_malformed_requests_do_not_end_a_thread(target: HeldCalls) -> None:
    """Far more malformed requests than threads are sent; then both threads still work."""
    with served(target, 2) as service, line(service) as socket:
        for number in range(50):
            ask(socket, number, "note", number, "not a number", client=f"c{number}")
            assert "note.who: expected str, got" in answer(socket)[1]
            ask(socket, number, "unknown_call", client=f"c{number}")
            assert answer(socket) == (number, "no call 'unknown_call'; there are hold, keep, look, note")
        assert service.counts == {"error": 100}
        assert not service._answers  # rejected requests are not cached
        for name in "ab":
            ask(socket, 1, "hold", name, client=name)
            assert target.begin(name).wait(SECONDS)
        for name in "ab":
            target.release(name).set()
        assert {answer(socket)[1] for _ in "ab"} == {"a", "b"}
