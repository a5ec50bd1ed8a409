"""Edge cases of calls: the reply cache, the log, error replies."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgpack
import pytest
import zmq

from common.errors import ConfigError
from common.rpc import server as serving_side
from common.rpc.client import Client, ServiceFailed, calling
from common.rpc.codec import WireError, pack, unpack
from common.rpc.interface import calls
from common.rpc.server import RateLimitedLogger, Service, serving

WAIT = 10_000  # ms


class Calls(Protocol):
    """The interface of these tests."""

    def take(self, size: int) -> bytes:
        """Returns `size` bytes, which differ in every call."""
        ...

    def fail(self, message: str) -> None:
        """Raises an error with this message."""
        ...


class Counting:
    """Counts its calls."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, size: int) -> bytes:
        self.taken += 1
        return bytes([self.taken]) * size

    def fail(self, message: str) -> None:
        raise RuntimeError(message.replace("SURROGATE", "\udcff").replace("LONG", "x" * 100_000))


@calling(Calls)
class RemoteCalls(Client, Calls):
    """A client of `Calls`."""


@pytest.fixture
def target() -> Counting:
    return Counting()


@pytest.fixture
def service(target: Counting) -> Iterator[Service]:
    with serving(Service(Calls, target)) as service:
        yield service


def answer(service: Service, frames: Sequence[bytes]) -> list[bytes]:
    """Send one message over a new connection. Returns the reply."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, WAIT)
        socket.connect(service.address)
        socket.send_multipart(frames)
        return socket.recv_multipart()


def ask(service: Service, call: str, *arguments: Any, client: str = "c", number: int = 1) -> list[bytes]:
    return answer(service, pack({"client": client, "id": number, "call": call}, list(arguments)))


def test_the_reply_cache_is_bounded_in_bytes(
    service: Service, target: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_side, "KEPT_BYTES", 35_000)
    for client in "abcd":
        ask(service, "take", 10_000, client=client)
    assert list(service._answers) == ["b", "c", "d"]
    ask(service, "take", 10_000, client="b", number=2)  # replaces its earlier reply
    assert list(service._answers) == ["c", "d", "b"]
    assert ask(service, "take", 10_000, client="d")[1] == bytes([4]) * 10_000
    assert service.counts["repeated"] == 1
    ask(service, "take", 100_000, client="e")  # larger than the whole cache: only this one is kept
    assert list(service._answers) == ["e"]
    assert ask(service, "take", 100_000, client="e")[1][:1] == bytes([6])
    ask(service, "take", 1, client="f")
    assert list(service._answers) == ["f"]
    assert service._answers_bytes == sum(len(frame) for _, frames in service._answers.values() for frame in frames)
    assert target.taken == 7


def test_an_older_request_does_not_run_again(service: Service, target: Counting) -> None:
    """A request that was delayed on a closed connection arrives after a later one."""
    for number in (1, 2):
        ask(service, "take", 1, number=number)
    late = unpack(ask(service, "take", 1, number=1)).header
    assert (late["error"], late["message"]) == ("WireError", "request 1 is older than the last one, 2")
    assert target.taken == 2


@pytest.mark.parametrize(
    ("message", "arrives"),
    [
        ("one\ntwo\x1b[2J", "one?two?[2J"),
        ("file SURROGATE", "file ?"),
        ("LONG", "x" * serving_side.MAX_ERROR_CHARS),
        ("動画", "動画"),
    ],
)
def test_error_messages_are_one_printable_line(service: Service, message: str, arrives: str) -> None:
    with RemoteCalls(service.address, "tester", timeout=10) as client:
        with pytest.raises(ServiceFailed) as failed:
            client.fail(message)
        assert str(failed.value) == f"fail: RuntimeError: {arrives}"
        assert client.take(3) == b"\1\1\1"


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
def test_client_id_and_call_are_validated(service: Service, header: dict[str, Any]) -> None:
    assert unpack(answer(service, pack(header, [1]))).header["error"] == "WireError"
    assert not service._answers
    assert service.counts == {"error": 1}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_an_unexpected_decoding_error_is_answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_side, "unpack", lambda *_: deep(1)[2])
    assert unpack(answer(service, [b""])).header["error"] == "IndexError"


def test_at_most_one_warning_a_second_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    logger = RateLimitedLogger(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for tenth in range(25):
            now[0] = 100 + tenth / 10
            logger.warn(f"line {tenth}")
    assert caplog.messages == ["line 0", "line 10 (and 9 more before it)", "line 20 (and 9 more before it)"]


def test_rejected_requests_are_logged_at_most_once_a_second(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            answer(service, [b"malformed" * 1000])
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
def test_a_malformed_error_reply_is_a_wire_error(answer: dict[str, Any]) -> None:
    frames = [msgpack.packb({"schema": 1, "id": 1, "blobs": []} | answer)]
    with pytest.raises(WireError, match="take: an error reply without a name or a message"):
        RemoteCalls.__new__(RemoteCalls)._read(calls(Calls)["take"], unpack(frames))


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_a_service_at_an_ipv6_address_is_reached(target: Counting) -> None:
    with serving(Service(Calls, target, "tcp://[::1]:*")) as service, RemoteCalls.at(service.address, "c") as client:
        assert client.take(1) == b"\1"


def test_localhost_means_the_ipv4_address(service: Service) -> None:
    """Also where the system's table of hosts has ::1 for it, and has it first."""
    port = service.address.rpartition(":")[2]
    with RemoteCalls.at(f"tcp://localhost:{port}", "c") as client:
        assert client.take(1) == b"\1"


@pytest.mark.parametrize("port", ["65536", "99999", "123456", "-1", "５"])
def test_a_port_that_cannot_exist_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match=r"not an address: tcp://HOST:PORT is needed"):
        RemoteCalls.at(f"tcp://127.0.0.1:{port}", "c")
