"""Calls at their edges: what a service keeps of its answers, what it logs, and which errors travel."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgpack
import pytest
import zmq

from common.rpc import server as serving_side
from common.rpc.client import Client, ServiceFailed, calling, calls
from common.rpc.codec import WireError, pack, unpack
from common.rpc.server import RateLimitedLogger, Service, serving

WAIT = 10_000  # ms


class Desk(Protocol):
    """What is asked for here."""

    def take(self, size: int) -> bytes:
        """So many bytes, which differ every time."""
        ...

    def fail(self, words: str) -> None:
        """Raise an error with these words."""
        ...


class Counting:
    """A desk that counts."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, size: int) -> bytes:
        self.taken += 1
        return bytes([self.taken]) * size

    def fail(self, words: str) -> None:
        raise RuntimeError(words.replace("SURROGATE", "\udcff").replace("LONG", "x" * 100_000))


@calling(Desk)
class RemoteDesk(Client, Desk):
    """A desk elsewhere."""


@pytest.fixture
def desk() -> Counting:
    return Counting()


@pytest.fixture
def service(desk: Counting) -> Iterator[Service]:
    with serving(Service(Desk, desk)) as service:
        yield service


def answer(service: Service, frames: Sequence[bytes]) -> list[bytes]:
    """The answer to one message, over a connection of its own."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, WAIT)
        socket.connect(service.address)
        socket.send_multipart(frames)
        return socket.recv_multipart()


def ask(service: Service, call: str, *arguments: Any, client: str = "c", number: int = 1) -> list[bytes]:
    return answer(service, pack({"client": client, "id": number, "call": call}, list(arguments)))


def test_kept_answers_are_bounded_in_bytes(service: Service, desk: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_side, "KEPT_BYTES", 35_000)
    for client in "abcd":
        ask(service, "take", 10_000, client=client)
    assert list(service._answers) == ["b", "c", "d"]
    ask(service, "take", 10_000, client="b", number=2)  # in the place of its earlier answer
    assert list(service._answers) == ["c", "d", "b"]
    assert ask(service, "take", 10_000, client="d")[1] == bytes([4]) * 10_000
    assert service.counts["repeated"] == 1
    ask(service, "take", 100_000, client="e")  # larger than all that is kept: it alone is
    assert list(service._answers) == ["e"]
    assert ask(service, "take", 100_000, client="e")[1][:1] == bytes([6])
    ask(service, "take", 1, client="f")
    assert list(service._answers) == ["f"]
    assert service._answers_bytes == sum(len(frame) for _, frames in service._answers.values() for frame in frames)
    assert desk.taken == 7


def test_an_older_request_is_not_made_again(service: Service, desk: Counting) -> None:
    """A request that was on its way on a connection given up long ago arrives after a later one."""
    for number in (1, 2):
        ask(service, "take", 1, number=number)
    late = unpack(ask(service, "take", 1, number=1)).header
    assert (late["error"], late["message"]) == ("WireError", "request 1 is older than the last one, 2")
    assert desk.taken == 2


@pytest.mark.parametrize(
    ("words", "arrives"),
    [
        ("one\ntwo\x1b[2J", "one?two?[2J"),
        ("file SURROGATE", "file ?"),
        ("LONG", "x" * serving_side.MAX_ERROR_CHARS),
        ("動画", "動画"),
    ],
)
def test_errors_travel_in_one_readable_line(service: Service, words: str, arrives: str) -> None:
    with RemoteDesk(service.address, "tester", timeout=10) as desk:
        with pytest.raises(ServiceFailed) as failed:
            desk.fail(words)
        assert str(failed.value) == f"fail: RuntimeError: {arrives}"
        assert desk.take(3) == b"\1\1\1"


@pytest.mark.parametrize(
    "header",
    [
        {"client": "c" * 65, "id": 1, "call": "take"},
        {"client": "c", "id": True, "call": "take"},
        {"client": b"c", "id": 1, "call": "take"},
        {"client": "c", "id": 1, "call": ["take"]},
        {"client": "c", "id": 1, "call": "_target"},
    ],
)
def test_who_asks_for_what_is_checked(service: Service, header: dict[str, Any]) -> None:
    assert unpack(answer(service, pack(header, [1]))).header["error"] == "WireError"
    assert not service._answers
    assert service.counts == {"error": 1}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_breaks_the_reading_itself_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_side, "unpack", lambda *_: deep(1)[2])
    assert unpack(answer(service, [b""])).header["error"] == "IndexError"


def test_one_warning_a_second_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    seldom = RateLimitedLogger(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for tenth in range(25):
            now[0] = 100 + tenth / 10
            seldom.warn(f"line {tenth}")
    assert caplog.messages == ["line 0", "line 10 (and 9 more before it)", "line 20 (and 9 more before it)"]


def test_a_service_logs_seldom(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            answer(service, [b"nonsense" * 1000])
    assert service.counts["error"] == 300
    assert 1 <= len(caplog.messages) < 10
    assert max(map(len, caplog.messages)) < 2 * serving_side.MAX_ERROR_CHARS


@pytest.mark.parametrize(
    "answer",
    [
        {"error": ["ValueError"], "message": "x"},
        {"error": {"a": 1}, "message": "x"},
        {"error": "ValueError", "message": None},
        {"error": "ValueError", "message": deep(400)},
        {"error": 0, "message": "x"},
    ],
)
def test_an_error_that_is_none_is_named(answer: dict[str, Any]) -> None:
    frames = [msgpack.packb({"schema": 1, "id": 1, "blobs": []} | answer)]
    with pytest.raises(WireError, match="take: an error reply without a name or a message"):
        RemoteDesk.__new__(RemoteDesk)._read(calls(Desk)["take"], unpack(frames))
