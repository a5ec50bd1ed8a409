"""An address without a Ray is refused in one line, within 20 seconds, and nothing else is printed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from common.config import ClusterConfig
from common.errors import ConfigError
from deploy.machine import ray_address
from deploy.runtime.ray_backend import connected

FORM = "give HOST:PORT of the head"


def refused(address: str) -> str:
    """The reason that `address` is refused for, within the promised time."""
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught, connected(ClusterConfig(address=address)):
        pass
    assert time.monotonic() - began < 20 + ray_address.LOAD_SECONDS  # a busy machine loads Ray slowly
    start = f"cluster.address = {address!r}: no Ray can be reached there: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(start)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of a web server: Ray's dashboard is one, too."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:", ":6379", "127.0.0.1:0", "127.0.0.1:99999", "::1:6379", "a b:6379", "127.0.0.1:6379/x",
     "http://127.0.0.1:8265", "ray://127.0.0.1:10001", "-h:1", "127.0.0.1:６３７９"],
)  # fmt: skip
def test_an_address_of_another_form_is_refused(address: str) -> None:
    assert refused(address).startswith(FORM)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_nobody_listens(host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        assert refused(f"{host}:{free.getsockname()[1]}") in ("Connection refused", "Cannot assign requested address")


@pytest.mark.parametrize("host", ["no_such-host.invalid", "a" * 64 + ".invalid", "bad..name", "ö.invalid"])
def test_a_name_that_does_not_resolve(host: str) -> None:
    why = refused(f"{host}:6379")
    assert host in why or "label" in why or "no answer within" in why  # without a network, or with a slow one


def test_a_host_that_drops_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog is what a test can have: Linux drops further connections, as a firewall does."""
    monkeypatch.setattr(ray_address, "TCP_SECONDS", 0.5)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        assert refused(f"127.0.0.1:{port}") in ("no answer within 0.5 s", "timed out")
        for other in others:
            other.close()


def test_something_else_listens(
    silent: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "STATUS_SECONDS", 1.0)
    assert refused(f"127.0.0.1:{silent}") == "what listens there does not answer as Ray does within 1 s"
    assert capfd.readouterr() == ("", "")


def test_a_web_server_listens(web_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "STATUS_SECONDS", 1.0)
    assert refused(f"localhost:{web_server}") == "what listens there does not answer as Ray does within 1 s"


def test_the_variable_is_named_if_the_address_is_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with (
        pytest.raises(ConfigError, match=rf"^RAY_ADDRESS = 'http://127.0.0.1:8265': .*: {FORM}"),
        connected(ClusterConfig()),
    ):
        pass
