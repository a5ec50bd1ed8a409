"""The exchange over ZeroMQ: the same contract, then what only a network has: timeouts, retries, malformed messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgpack
import pytest
import zmq

from common.config import RunConfig
from common.errors import ConfigError
from common.exchange.api import HubExchange, State, WorkerExchange
from common.exchange.local import LocalExchange
from common.exchange.remote import Heartbeat, RemoteExchange, exchange_service
from common.messages import Candidate
from common.rpc import client as rpc
from common.rpc.client import ServiceFailed, Unreachable
from common.rpc.codec import Limits, pack, unpack
from common.rpc.interface import calls
from common.rpc.server import Service, serving
from tests.support.exchange import fakes
from tests.support.exchange.contract import ExchangeContract, Factory
from tests.support.exchange.fakes import Clock, candidate, conditioning, small


class Remote(RemoteExchange):
    """A client with its own service; `close` ends both. The hub's calls go to the local exchange directly."""

    def __init__(self, local: LocalExchange) -> None:
        self.local = local
        self.stack = ExitStack()
        self.stack.callback(local.close)
        self.service = self.stack.enter_context(serving(exchange_service(local)))
        super().__init__(self.service.address, "tester", timeout=10)

    def __getattr__(self, name: str) -> Any:
        if name not in calls(HubExchange):
            raise AttributeError(name)
        return getattr(self.local, name)

    def close(self) -> None:
        super().close()
        self.stack.close()


class TestRemoteExchange(ExchangeContract):
    """`RemoteExchange` passes the contract tests."""

    @pytest.fixture
    def open_exchange(self, clock: Clock, tmp_path: Path) -> Iterator[Factory]:
        opened: list[Remote] = []

        def opening(config: RunConfig) -> Any:
            opened.append(Remote(fakes.open_exchange(tmp_path, config, clock)))
            return opened[-1]

        yield opening
        for exchange in opened:
            exchange.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalExchange]:
    exchange = fakes.open_exchange(tmp_path, small())
    yield exchange
    exchange.close()


@pytest.fixture
def service(local: LocalExchange) -> Iterator[Service]:
    with serving(exchange_service(local)) as service:
        yield service


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(service: Service) -> Iterator[Ask]:
    """Sends raw frames and returns the reply's header."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(service.address)

        def asking(*frames: bytes) -> dict[str, Any]:
            socket.send_multipart(frames)
            assert socket.poll(10_000), "no answer"
            return unpack(socket.recv_multipart()).header

        yield asking


def request(call: str, *arguments: Any, number: int = 1, client: str = "c") -> list[bytes]:
    return pack({"client": client, "id": number, "call": call}, list(arguments))


def test_every_call_of_the_interface_is_served() -> None:
    names = {name for name in dir(WorkerExchange) if not name.startswith("_")}
    assert set(calls(WorkerExchange)) == names == set(vars(RemoteExchange)) & names


def test_the_calls_of_the_hub_are_not_served(ask: Ask) -> None:
    for number, name in enumerate(calls(HubExchange), start=1):
        assert ask(*request(name, number=number))["error"] == "WireError", name


def test_errors_keep_their_class(service: Service) -> None:
    with RemoteExchange(service.address, "tester") as exchange:
        with pytest.raises(ValueError, match="version 7"):
            exchange.lease_sampling("sampler-0", 7)
        with pytest.raises(ConfigError, match="step"):
            exchange.rollback(5)
        assert service.counts["error"] == 2
        assert exchange.next_version() == 0  # the service still runs


def test_an_unexpected_error_becomes_service_failed(service: Service, local: LocalExchange) -> None:
    local.close()
    broken = pytest.raises(ServiceFailed, match="next_version: ProgrammingError: Cannot operate on a closed database")
    with RemoteExchange(service.address, "tester") as exchange, broken:
        exchange.next_version()


def test_a_retry_gets_the_cached_reply(ask: Ask, local: LocalExchange) -> None:
    first = ask(*request("lease_sampling", "sampler-0", 0))
    again = ask(*request("lease_sampling", "sampler-0", 0))
    assert first == again
    assert local.counts()[State.SAMPLING] == 1
    assert ask(*request("lease_sampling", "sampler-0", 0, number=2))["body"]["prompt"]["ordinal"] == 1
    assert ask(*request("lease_sampling", "sampler-0", 0, client="d"))["body"]["prompt"]["ordinal"] == 2


def test_a_lost_reply_does_not_lease_twice(local: LocalExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reply is lost; the client retries and gets the same lease."""
    with (
        serving(exchange_service(local)) as service,
        RemoteExchange(service.address, "sampler-0", timeout=0.5) as exchange,
    ):
        await_answer, dropped = exchange._await, []

        def lossy(number: int) -> Any:
            answer = await_answer(number)
            if not dropped:
                dropped.append(answer)
                return None
            return answer

        monkeypatch.setattr(exchange, "_await", lossy)
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        assert lease.prompt.ordinal == 0
        assert local.counts()[State.SAMPLING] == 1
        assert service.counts["repeated"] == 1


def test_a_timeout_names_client_call_and_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 2)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent_server:
        silent_server.bind("tcp://127.0.0.1:*")
        address = silent_server.getsockopt_string(zmq.LAST_ENDPOINT)
        message = f"sampler-3: next_version: no answer from {address} in 0.1 s"
        with (
            RemoteExchange(address, "sampler-3", timeout=0.05) as exchange,
            pytest.raises(Unreachable, match=message),
        ):
            exchange.next_version()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([b""], "the header is not valid msgpack"),
        ([b"\xc1"], "the header is not valid msgpack"),
        ([msgpack.packb([1, 2])], "the header is a list, not a map"),
        ([msgpack.packb({"schema": 99})], "schema 99; this program uses schema 1"),
        ([msgpack.packb({"schema": 1, "blobs": [3]})], "blobs of [] bytes, but the header says [3]"),
        (pack({"id": 1}), "a request needs a client and an id"),
        (request("close"), "no call 'close'; there are announce, changes, commit_step, empty_prompt"),
        (request("__class__"), "no call '__class__'"),
        (request("lease_sampling", "a"), "lease_sampling: expected 2 arguments (worker, version)"),
        (request("lease_sampling", "a", "b"), "lease_sampling.version: expected int, got 'b'"),
        (request("lease_sampling", "a", True), "lease_sampling.version: expected int, got True"),
    ],
)
def test_malformed_requests_get_an_error_reply(
    ask: Ask, local: LocalExchange, frames: list[bytes], message: str
) -> None:
    answer = ask(*frames)
    assert answer["error"] == "WireError"
    assert message in answer["message"]
    assert sum(local.counts().values()) == 0
    assert ask(*request("next_version"))["body"] == 0  # the service still runs


def test_a_tensor_with_a_wrong_size_is_rejected(ask: Ask, local: LocalExchange) -> None:
    lease = local.lease_sampling("sampler-0", 0)
    assert lease is not None
    header, *blobs = request("submit_candidate", lease, candidate(lease, 0))
    tampered = msgpack.unpackb(header)
    tampered["body"][1]["latents"]["shape"] = [1 << 20, 1 << 20]
    answer = ask(msgpack.packb(tampered), *blobs)
    assert answer["error"] == "WireError"
    assert "submit_candidate.candidate.latents: uint8[1048576, 1048576] needs 1099511627776 bytes" in answer["message"]


def test_a_frame_beyond_the_limit_is_never_read(local: LocalExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    with serving(exchange_service(local, limits=Limits(blob=10_000))) as service:
        lease = local.lease_sampling("sampler-0", 0)
        assert lease is not None
        large = Candidate(**{**_fields(candidate(lease, 0)), "clip": bytes(20_000)})
        with (
            RemoteExchange(service.address, "sampler-0", timeout=0.5) as exchange,
            pytest.raises(Unreachable),
        ):
            exchange.submit_candidate(lease, large)
        assert service.counts["submit_candidate"] == 0
        with RemoteExchange(service.address, "sampler-1", timeout=10) as exchange:
            assert exchange.submit_conditioning(lease, conditioning(lease.prompt)).accepted


def _fields(one: Candidate) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Candidate.__dataclass_fields__}


def test_the_reply_cache_is_bounded_in_clients(ask: Ask, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.rpc.server.CLIENTS", 3)
    for name in "abcdef":
        ask(*request("next_version", client=name))
    assert list(service._answers) == ["d", "e", "f"]


def test_a_heartbeat_keeps_leases_alive(tmp_path: Path) -> None:
    """The clock passes the lease's end in small steps, and the test waits for a heartbeat after each."""
    clock, config = Clock(), small(exchange__lease_seconds=10)
    local = fakes.open_exchange(tmp_path, config, clock)
    renewed = Event()
    local_renew = local.renew

    def renew(worker: str) -> None:
        local_renew(worker)
        renewed.set()

    local.renew = renew  # type: ignore[method-assign]
    with serving(exchange_service(local)) as service:
        lease = local.lease_sampling("sampler-0", 0)
        assert lease is not None
        with Heartbeat(lambda: RemoteExchange(service.address, "sampler-0"), "sampler-0", seconds=0.01):
            for _ in range(3):
                clock.now += 6
                renewed.clear()
                assert renewed.wait(10)
        assert local.submit_conditioning(lease, conditioning(lease.prompt)).accepted
        clock.now += 11
        again = local.lease_sampling("sampler-1", 0)
        assert again is not None
        assert again.prompt.ordinal == lease.prompt.ordinal
        assert local.submit_candidate(lease, candidate(lease, 0)).reason == "lost lease"
    local.close()


def test_first_frames_are_not_sent_back(
    service: Service, local: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RemoteExchange(service.address, "sampler-0", timeout=10) as exchange:
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        assert lease.prompt.image is not None
        came: list[bytes | None] = []
        for name in ("submit_conditioning", "submit_candidate"):
            submit = getattr(local, name)
            watch = lambda lease, what, submit=submit: (came.append(lease.prompt.image), submit(lease, what))[1]  # noqa: E731
            monkeypatch.setattr(local, name, watch)
        assert exchange.submit_conditioning(lease, conditioning(lease.prompt)).accepted
        assert exchange.submit_candidate(lease, candidate(lease, 0)).accepted
        assert came == [None, None]


def test_two_samplers_share_the_ordinals(service: Service, local: LocalExchange) -> None:
    """Each ordinal is leased exactly once."""
    leased: list[int] = []

    def work(name: str) -> None:
        with RemoteExchange(service.address, name, timeout=10) as exchange:
            for _ in range(2):
                lease = exchange.lease_sampling(name, 0)
                if lease is not None:
                    leased.append(lease.prompt.ordinal)

    threads = [Thread(target=work, args=(f"sampler-{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(leased) == [0, 1, 2, 3]
    assert local.counts()[State.SAMPLING] == 4
