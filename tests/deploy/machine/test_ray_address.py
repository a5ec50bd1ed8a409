"""An address without a Ray is refused in one line, within 20 seconds, and nothing else is printed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from platform import python_version
from threading import Thread

import pytest

from common.config import ClusterConfig
from common.errors import ConfigError
from deploy.machine import ray_address
from deploy.machine.ray_address import refusal
from deploy.runtime.ray_backend import connected
from tests.support.toy import wait_until

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


# A Ray that answers, and refuses. Its words are those of heads of Ray 2.49.0 (Python 3.11) and 2.60.0 (Python 3.12).


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "RuntimeError: Ray version mismatch: cluster has Ray version 2.49.0 but local Ray version is 2.60.0",
            "Ray 2.49.0 runs there, and this is Ray 2.60.0: install the same version on all nodes",
        ),
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\nThis process on "
            "node 192.0.2.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n",
            f"Ray 2.60.0 with Python 3.12.1 runs there, and this is Python {python_version()}: use the same versions "
            "on all nodes",
        ),
        ("Failed to connect to GCS", ""),
    ],
)
def test_a_ray_of_another_version(said: str, why: str) -> None:
    assert refusal(said) == why


@pytest.fixture
def head_with_token(tmp_path: Path) -> Iterator[int]:
    """The port of a Ray of this version that wants a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:  # Ray's sockets need a short path
        options = ["--head", f"--port={port}", f"--temp-dir={short}", "--include-dashboard=false", "--num-cpus=1"]
        options += ["--object-store-memory=80000000", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "HOME": str(tmp_path)}
        with (tmp_path / "head.log").open("w") as log:
            words = [ray, "start", *options, "--block"]
            head = subprocess.Popen(words, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            try:
                wait_until(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text(), 60)
                yield port
            finally:
                head.terminate()
                head.wait(30)


@pytest.mark.timeout(180)
def test_a_ray_that_wants_a_token(head_with_token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert refused(f"127.0.0.1:{head_with_token}").startswith("that Ray wants a token: set RAY_AUTH_MODE=token, and ")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    ray_address.check_ray("cluster.address", f"127.0.0.1:{head_with_token}")
