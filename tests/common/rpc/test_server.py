"""A service under many clients: order per client, repeats while in work, small before large, an orderly stop."""

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
from common.rpc.client import Client, Unreachable, calling, repeatable
from common.rpc.codec import pack, unpack
from common.rpc.server import Service, serving

SECONDS = 20  # that anything may take


class Desk(Protocol):
    """What these tests ask for."""

    def note(self, who: str, number: int) -> int:
        """The same number."""
        ...

    def hold(self, name: str) -> str:
        """The same name, once that hold is released."""
        ...

    def keep(self, name: str, data: bytes) -> str:
        """As `hold`, with bytes."""
        ...

    @repeatable
    def look(self, name: str) -> str:
        """As `hold`, for those who may ask twice."""
        ...


class Held:
    """A desk whose holds end when told to; it knows what began and what ended, in order."""

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


@calling(Desk)
class RemoteDesk(Client, Desk):
    """A client of a desk."""


@pytest.fixture
def desk() -> Held:
    return Held()


@contextmanager
def served(desk: Held, threads: int) -> Iterator[Service]:
    with serving(Service(Desk, desk, threads=threads)) as service:
        yield service


@contextmanager
def line(service: Service) -> Iterator[zmq.Socket[bytes]]:
    """A bare connection: it may ask without waiting for answers."""
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
    """Nonsense is refused at once: with its answer, all that was asked before over this connection is in the queue."""
    ask(socket, 0, "nonsense", client="nobody")
    assert "no call 'nonsense'" in answer(socket)[1]


def test_one_clients_requests_stay_in_order_also_unanswered(desk: Held) -> None:
    """The first is held up while seven idle threads could run ahead with the rest."""
    with served(desk, 8) as service, line(service) as socket, line(service) as other:
        ask(socket, 1, "hold", "first")
        assert desk.begin("first").wait(SECONDS)
        for number in range(2, 30):
            ask(socket, number, "note", "c", number)
        ask(other, 1, "note", "d", 1, client="d")
        assert answer(other) == (1, 1)  # other clients are served meanwhile
        assert desk.noted == [("d", 1)]
        desk.release("first").set()
        assert [answer(socket) for _ in range(29)] == [(1, "first"), *((n, n) for n in range(2, 30))]
        assert desk.noted[1:] == [("c", number) for number in range(2, 30)]


def test_a_request_repeated_while_in_work_is_made_once_and_answered_where_it_was_asked_last(desk: Held) -> None:
    with served(desk, 4) as service, line(service) as first, line(service) as second:
        ask(first, 7, "hold", "long")
        assert desk.begin("long").wait(SECONDS)
        ask(second, 7, "hold", "long")
        ask(second, 7, "hold", "long")  # no client does so: every message has its answer all the same
        assert answer(second) == (7, "request 7 is already running")
        ask(second, 1, "note", "d", 1, client="d")  # answered after the repeat was seen
        assert answer(second) == (1, 1)
        assert service.counts["repeated"] == 1
        desk.release("long").set()
        assert answer(second) == (7, "long")
        assert first.poll(0) == 0
        ask(first, 7, "hold", "long")  # and once more when it is over
        assert answer(first) == (7, "long")
        assert desk.began == ["long"]


def test_a_client_that_gives_up_waiting_still_gets_its_one_answer(desk: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 1000)
    with served(desk, 2) as service, RemoteDesk(service.address, "tester", timeout=0.02) as client:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.hold, "long")
            assert desk.begin("long").wait(SECONDS)
            with line(service) as other:
                for number in count():  # until it was seen asking again
                    ask(other, number, "note", "d", number, client="d")
                    assert answer(other) == (number, number)
                    if service.counts["repeated"] > 2:
                        break
            desk.release("long").set()
            assert asked.result(SECONDS) == "long"
        assert desk.began == ["long"]


def test_small_requests_go_first(desk: Held) -> None:
    with served(desk, 1) as service, line(service) as socket:
        ask(socket, 1, "hold", "busy", client="a")
        assert desk.begin("busy").wait(SECONDS)
        for name in ("large", "larger"):
            desk.release(name).set()
            ask(socket, 1, "keep", name, bytes(serving_side.SMALL_REQUEST + 1), client=name)
        desk.release("small").set()
        ask(socket, 1, "keep", "small", b"", client="b")
        ask(socket, 2, "hold", "busy", client="a")  # waits for its own first
        wait_until_read(socket)
        desk.release("busy").set()
        for _ in range(5):
            answer(socket)
        assert desk.began[:2] == ["busy", "small"]
        assert set(desk.began[2:]) == {"busy", "large", "larger"}
        assert desk.began.index("large") < desk.began.index("larger")


def test_one_thread_calls_one_at_a_time(desk: Held) -> None:
    with served(desk, 1) as service, line(service) as socket:
        for name in "abc":
            ask(socket, 1, "hold", name, client=name)
        for name in "abc":
            assert desk.begin(name).wait(SECONDS)
            assert len(desk.began) == len(desk.ended) + 1
            desk.release(name).set()
            assert answer(socket) == (1, name)


def test_a_stop_finishes_what_is_in_work_and_nothing_more(desk: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    service, stop = Service(Desk, desk, threads=1), Event()
    thread = Thread(target=service.serve, args=(stop,))
    thread.start()
    try:
        with RemoteDesk(service.address, "a", timeout=SECONDS) as client, line(service) as socket:
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(client.hold, "in work")
                assert desk.begin("in work").wait(SECONDS)
                ask(socket, 1, "note", "behind", 1)
                wait_until_read(socket)
                stop.set()
                desk.release("in work").set()
                assert asked.result(SECONDS) == "in work"
            thread.join(SECONDS)
            assert not thread.is_alive()
            assert (desk.ended, desk.noted) == (["in work"], [])
    finally:
        desk.release("in work").set()
        stop.set()
        thread.join(SECONDS)
        service.close()
    with RemoteDesk(service.address, "late", timeout=0.05) as client, pytest.raises(Unreachable):
        client.note("late", 1)


def test_many_clients_at_once(desk: Held) -> None:
    """64 clients, 8 threads: everyone gets their own answers, every call is made once."""
    asks = 20

    def work(place: int) -> list[int]:
        with RemoteDesk(service.address, f"c{place}", timeout=SECONDS) as client:
            return [client.note(f"c{place}", 100 * place + number) for number in range(asks)]

    with served(desk, 8) as service, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(work, range(64)))
        assert service.counts["note"] == 64 * asks
    assert answers == [[100 * place + number for number in range(asks)] for place in range(64)]
    for place in range(64):
        mine = [number for who, number in desk.noted if who == f"c{place}"]
        assert mine == answers[place]


# What waits is bounded.


def test_a_client_may_have_so_many_requests_under_way(desk: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_side, "MAX_QUEUED", 4)
    with served(desk, 2) as service, line(service) as socket, line(service) as other:
        ask(socket, 1, "hold", "first")
        assert desk.begin("first").wait(SECONDS)
        for number in range(2, 8):
            ask(socket, number, "note", "c", number)
        for number in range(5, 8):
            assert answer(socket) == (number, "this client already has 4 open requests, the maximum")
        ask(other, 1, "note", "d", 1, client="d")
        assert answer(other) == (1, 1)
        desk.release("first").set()
        assert [answer(socket) for _ in range(4)] == [(1, "first"), (2, 2), (3, 3), (4, 4)]
        ask(socket, 8, "note", "c", 8)
        assert answer(socket) == (8, 8)


@pytest.mark.parametrize(("name", "bound", "most"), [("MAX_PENDING", 5, 5), ("MAX_PENDING_BYTES", 50_000, 6)])
def test_beyond_a_bound_nothing_more_is_read(
    desk: Held, monkeypatch: pytest.MonkeyPatch, name: str, bound: int, most: int
) -> None:
    """What is not read waits in the connection, and is answered in the end."""
    monkeypatch.setattr(serving_side, name, bound)
    seen: list[int] = []
    with served(desk, 1) as service, line(service) as socket:
        admit = service._admit
        monkeypatch.setattr(service, "_admit", lambda one: (admit(one), seen.append(service._pending_count)))
        for number in range(1, 31):
            ask(socket, number, "keep", "same", bytes(10_000 * (name == "MAX_PENDING_BYTES")), client=f"c{number}")
        assert desk.begin("same").wait(SECONDS)
        for _ in range(10_000):
            if len(seen) >= most - 1:
                break
            Event().wait(0.001)
        desk.release("same").set()
        assert sorted(answer(socket)[0] for _ in range(30)) == list(range(1, 31))
        assert len(seen) == 30
        assert max(seen) <= most
    assert (service._pending_count, service._pending_bytes, service._pending) == (0, 0, {})


def test_a_request_older_than_one_in_work_is_refused(desk: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the client's last answer is not kept any more."""
    monkeypatch.setattr(serving_side, "CLIENTS", 1)
    with served(desk, 2) as service, line(service) as socket:
        ask(socket, 1, "note", "c", 1)
        assert answer(socket) == (1, 1)
        ask(socket, 1, "note", "d", 1, client="d")  # for the one place there is
        assert answer(socket) == (1, 1)
        ask(socket, 2, "hold", "long")
        assert desk.begin("long").wait(SECONDS)
        ask(socket, 1, "note", "c", 1)
        assert answer(socket) == (1, "request 1 is older than the last one, 2")
        desk.release("long").set()
        assert answer(socket) == (2, "long")
        assert desk.noted == [("c", 1), ("d", 1)]


def test_what_may_be_made_twice_makes_nothing_older(desk: Held) -> None:
    """A stream has a connection of its own, so its requests overtake, and are overtaken."""
    with served(desk, 2) as service, line(service) as socket:
        ask(socket, 7, "look", "chunk")
        assert desk.begin("chunk").wait(SECONDS)
        ask(socket, 6, "note", "c", 6)
        wait_until_read(socket)
        desk.release("chunk").set()
        assert [answer(socket), answer(socket)] == [(7, "chunk"), (6, 6)]


def test_nonsense_ends_no_thread(desk: Held) -> None:
    """Two threads, each sent what it cannot read far more often than there are threads; then both work."""
    with served(desk, 2) as service, line(service) as socket:
        for number in range(50):
            ask(socket, number, "note", number, "no number", client=f"c{number}")
            assert "note.who: expected str, got" in answer(socket)[1]
            ask(socket, number, "nonsense", client=f"c{number}")
            assert answer(socket) == (number, "no call 'nonsense'; there are hold, keep, look, note")
        assert service.counts == {"error": 100}
        assert not service._answers  # what was not made may be asked for again
        for name in "ab":
            ask(socket, 1, "hold", name, client=name)
            assert desk.begin(name).wait(SECONDS)
        for name in "ab":
            desk.release(name).set()
        assert {answer(socket)[1] for _ in "ab"} == {"a", "b"}
