"""CURVE keys: only clients with the run's key are served, and no socket off loopback is opened without keys."""

from __future__ import annotations

import os
import socket as sockets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq

from common.errors import ConfigError
from common.exchange.remote import Heartbeat, RemoteExchange, exchange_service
from common.messages import Span
from common.rpc import client as rpc
from common.rpc.client import Unreachable
from common.rpc.curve import (
    KEYS,
    CurveAuthenticator,
    ServerKeys,
    WorkerKey,
    check_listening,
    check_reaching,
    is_loopback,
    make_or_read,
    read_worker_key,
)
from common.rpc.server import Service, serving
from common.weights.source import RemoteWeights, weight_service
from common.weights.sync import WeightPuller
from deploy.run_dir.journal import Journal
from deploy.runtime.messages import Addresses
from deploy.runtime.workers.remote_journal import RemoteJournal
from tests.support.hosting import Hosted, hosted
from tests.support.toy import wait_until

WAIT = 20.0
GROWTH = 16  # MiB that unauthorised clients may cost the services' process


def other_interface() -> str | None:
    """An address of this machine that is not loopback."""
    found = [one.address for addresses in psutil.net_if_addrs().values() for one in addresses if one.family == 2]
    return next((address for address in found if not is_loopback(address)), None)


# Key files.


def test_keys_are_created_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    keys = make_or_read(tmp_path / KEYS)
    assert make_or_read(tmp_path / KEYS) == keys
    assert read_worker_key(tmp_path / KEYS / "worker.key") == keys.worker
    assert keys.worker.server == keys.public
    assert stat.S_IMODE((tmp_path / KEYS).stat().st_mode) == 0o700
    files = sorted((tmp_path / KEYS).iterdir())
    assert [(file.name, stat.S_IMODE(file.stat().st_mode)) for file in files] == [
        ("server.key", 0o600),
        ("worker.key", 0o600),
    ]
    assert keys.secret not in files[1].read_text()
    assert make_or_read(tmp_path / "another") != keys


def test_a_crash_while_keys_were_written_is_harmless(tmp_path: Path) -> None:
    draft = tmp_path / f".{KEYS}.draft"
    draft.mkdir()
    (draft / "server.key").write_text("half")
    keys = make_or_read(tmp_path / KEYS)
    assert not draft.exists()
    assert make_or_read(tmp_path / KEYS) == keys


def test_repr_hides_the_secrets(tmp_path: Path) -> None:
    keys = make_or_read(tmp_path / KEYS)
    addresses = Addresses("tcp://a", "tcp://b", "tcp://c", tmp_path, keys.worker)
    for shown in (repr(keys), repr(keys.worker), repr(addresses), f"{addresses}"):
        assert keys.secret not in shown
        assert keys.worker.secret not in shown


@pytest.mark.parametrize("name", ["server.key", "worker.key"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_file_readable_by_others_is_rejected(tmp_path: Path, name: str, mode: int) -> None:
    make_or_read(tmp_path / KEYS)
    file = tmp_path / KEYS / name
    file.chmod(mode)
    message = rf"{file}: others than its owner may use it \(mode {mode:04o}\): chmod 600 {file}$"
    with pytest.raises(ConfigError, match=message):
        make_or_read(tmp_path / KEYS)
    file.chmod(0o600)
    make_or_read(tmp_path / KEYS)


def worker_file(folder: Path) -> Path:
    make_or_read(folder)
    return folder / "worker.key"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "not a worker key file: its kind is None"),
        (lambda text: text[:-9], "not valid TOML"),
        (lambda text: "\udcff" + text, "not valid TOML"),
        (lambda text: text.replace('"worker"', '"server"'), "not a worker key file: its kind is 'server'"),
        (
            lambda text: text.replace('"worker"', '["worker"]'),
            r"not a worker key file: its kind is \['worker'\]",
        ),
        (lambda text: text + "more = 1\n", "broken: it must hold server, public, secret of 40 characters each"),
        (
            lambda text: text.replace('server = "', 'server = "x'),
            "broken: it must hold server, public, secret of 40 characters",
        ),
        (lambda text: text[:-42] + '%%%%%"\n', "broken: it must hold server, public, secret of 40 characters"),
        (lambda text: text[:-42] + zmq.curve_keypair()[1].decode() + '"\n', "public and secret do not belong together"),
    ],
)
def test_a_broken_key_file_is_rejected_without_showing_it(tmp_path: Path, damage: object, message: str) -> None:
    file = worker_file(tmp_path / KEYS)
    secret = read_worker_key(file).secret
    file.write_bytes(damage(file.read_text()).encode(errors="surrogateescape"))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=f"^{file}: .*{message}") as refused:
        read_worker_key(file)
    assert secret not in str(refused.value)


def test_a_missing_or_foreign_key_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_worker_key(tmp_path / "none.key")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_worker_key(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_worker_key(tmp_path / "pipe")
    file, foreign = worker_file(tmp_path / KEYS), worker_file(tmp_path / "another")
    file.write_bytes(foreign.read_bytes())
    with pytest.raises(ConfigError, match=r"worker\.key is for another server than server\.key; delete .*/keys for"):
        make_or_read(tmp_path / KEYS)
    file.unlink()
    with pytest.raises(ConfigError, match=r"worker\.key: cannot read the key file: No such file"):
        make_or_read(tmp_path / KEYS)
    with pytest.raises(ConfigError, match="keys cannot be written: No such file"):
        make_or_read(tmp_path / "missing" / KEYS)


# Addresses.


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "*", "::", "[::]", "[::ffff:0.0.0.0]", "0", "0x0", "00.0.0.0", "lo", "localhost"]
)
@pytest.mark.parametrize("keyed", [True, False])
def test_listening_on_all_interfaces_is_rejected(host: str, keyed: bool) -> None:
    with pytest.raises(ConfigError, match="listen at one IP address of this machine"):
        check_listening(f"tcp://{host}:*", keyed)


@pytest.mark.parametrize("host", ["10.0.0.7", "192.168.1.1", "[fd00::1]", "128.0.0.1", "[::ffff:10.0.0.7]"])
def test_other_interfaces_than_loopback_require_keys(host: str) -> None:
    check_listening(f"tcp://{host}:5555", True)
    check_reaching(f"tcp://{host}:5555", True)
    with pytest.raises(ConfigError, match=r"tcp://.*:5555: off loopback a service needs keys"):
        check_listening(f"tcp://{host}:5555", False)
    with pytest.raises(
        ConfigError, match=r"tcp://.*:5555: off loopback a key is needed \(the run's RUN/keys/worker\.key"
    ):
        check_reaching(f"tcp://{host}:5555", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "::1"])
def test_on_loopback_keys_are_optional(host: str) -> None:
    for keyed in (True, False):
        check_listening(f"tcp://{host}:*", keyed)
        check_reaching(f"tcp://{host}:5555", keyed)
    check_reaching("tcp://localhost:5555", False)


@pytest.mark.parametrize("host", ["hub.example", "localhost.example", "127.0.0.1:0;10.0.0.7"])
def test_a_host_name_requires_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="a key is needed"):
        check_reaching(f"tcp://{host}:5555", False)


@pytest.mark.parametrize("address", ["", "10.0.0.7:5555", "ipc:///tmp/x", "tcp://:5555", "tcp://127.0.0.1"])
def test_malformed_addresses_are_rejected(address: str) -> None:
    for check in (check_listening, check_reaching):
        with pytest.raises(ConfigError, match="tcp://HOST:PORT is needed"):
            check(address, True)


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections(kind="tcp")
    return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN}  # type: ignore[misc]


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:*", "tcp://*:*", f"tcp://{other_interface() or '10.0.0.7'}:*"])
def test_a_rejected_address_is_not_bound(address: str, tmp_path: Path) -> None:
    before = listening()
    for open_service in (lambda: exchange_service(None, address), lambda: weight_service(None, address)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"listen at one IP address|off loopback a service needs keys"):
            open_service()
    for client in (RemoteExchange, RemoteWeights, RemoteJournal):
        with pytest.raises(ConfigError, match="a key is needed"):
            client.at("tcp://10.0.0.7:1", "unauthorised")
    with pytest.raises(ConfigError, match="a key is needed"):
        WeightPuller("tcp://10.0.0.7:1", lambda: 0, tmp_path, "unauthorised")
    assert listening() == before


# Sockets.


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> ServerKeys:
    return make_or_read(tmp_path_factory.mktemp("keys") / KEYS)


@pytest.fixture(scope="module", params=["loopback", "off loopback"])
def run(request: pytest.FixtureRequest, keys: ServerKeys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Services with keys, in a separate process."""
    host = "127.0.0.1" if request.param == "loopback" else other_interface()
    if host is None:
        pytest.skip("this machine has no other interface than loopback")
    with hosted(tmp_path_factory.mktemp("run"), keys, host) as run:
        yield run


def unauthorised_keys(keys: ServerKeys) -> dict[str, WorkerKey]:
    """Keys that must be rejected."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return {
        "foreign pair, right server": WorkerKey(keys.public, public, secret),
        "right pair, wrong server": replace(keys.worker, server=public),
        "the server's own pair": WorkerKey(keys.public, keys.public, keys.secret),
    }


def test_the_worker_key_gives_access_to_every_service(run: Hosted, keys: ServerKeys, tmp_path: Path) -> None:
    addresses = run.addresses

    def exchange() -> RemoteExchange:
        return RemoteExchange.at(addresses["exchange"], "sampler-0", keys.worker)

    with ExitStack() as stack:
        asking = stack.enter_context(exchange())
        journal = stack.enter_context(RemoteJournal.at(addresses["journal"], "sampler-0", keys.worker))
        journal.span(Span("sampler-0", "sampling", 1.0, 2.0))
        puller = WeightPuller(addresses["weights"], asking.wanted_version, tmp_path, "sampler-0", keys.worker)
        assert stack.enter_context(puller).wait(0, WAIT)
        with Heartbeat(exchange, "sampler-0", seconds=0.01):
            while not run.counts()["renew"]:  # ended by the test's timeout
                pass
    assert set(run.counts()) >= {"wanted_version", "span", "chunk", "renew"}


def test_unauthorised_clients_get_no_answer_and_cost_no_memory(
    run: Hosted, keys: ServerKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "ATTEMPTS", 2)
    before, memory = run.counts(), run.memory
    address, asked = run.addresses["exchange"], 0
    with RemoteExchange.at(address, "sampler-0", keys.worker) as authorised, ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        keyless = [stack.enter_context(keyless_socket(context, address)) for _ in range(20)]
        for key in unauthorised_keys(keys).values():
            for service, method in (("exchange", "next_version"), ("weights", "manifest"), ("journal", "span")):
                kind = {"exchange": RemoteExchange, "weights": RemoteWeights, "journal": RemoteJournal}[service]
                arguments = {"span": [Span("x", "y", 1.0, 2.0)], "manifest": [0]}.get(method, [])
                with (
                    kind(run.addresses[service], "unauthorised", timeout=0.1, key=key) as unauthorised,
                    pytest.raises(
                        Unreachable, match=f"unauthorised: {method}: no answer from {run.addresses[service]}"
                    ),
                ):
                    getattr(unauthorised, method)(*arguments)
                assert authorised.next_version() == 0  # still served
                asked += 1
            for raw in keyless:
                with suppress(zmq.Again):
                    raw.send(bytes(1 << 16), zmq.NOBLOCK)
                noise(address)
        assert not any(raw.poll(0) for raw in keyless)
    found = run.counts() - before
    assert found.pop("next_version") == asked
    assert not found
    assert run.memory - memory < GROWTH


def keyless_socket(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A DEALER without a key. It bypasses the check on the client's side."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    return socket


def noise(address: str) -> None:
    """A ZMTP greeting without security, followed by zeros."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    with suppress(OSError), sockets.create_connection((host, int(port)), timeout=1) as raw:
        raw.sendall(greeting + bytes(1 << 20))


def test_clients_are_rejected_while_the_authenticator_is_not_running(
    keys: ServerKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encryption alone must not grant access: without the authenticator thread, even the right key is rejected."""
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        authenticator = CurveAuthenticator(context, keys)
        authenticator.close()
        authenticator.bind(router, "tcp://127.0.0.1:*")
        address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        with (
            RemoteExchange(address, "sampler-0", timeout=0.5, key=keys.worker) as exchange,
            pytest.raises(Unreachable),
        ):
            exchange.next_version()
        assert not router.poll(0)


def test_a_client_with_a_key_rejects_a_server_without(keys: ServerKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with a key does not talk to a server that cannot prove its identity."""
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor:
        impostor.bind("tcp://127.0.0.1:*")
        address = impostor.getsockopt_string(zmq.LAST_ENDPOINT)
        with (
            RemoteExchange(address, "sampler-0", timeout=0.5, key=keys.worker) as exchange,
            pytest.raises(Unreachable),
        ):
            exchange.next_version()
        assert not impostor.poll(0)


def test_a_request_on_a_rejected_connection_times_out(keys: ServerKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the handshake was rejected before the first request, sending blocks; the timeout must still apply."""
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    with (
        serving(Service(Journal, None, keys=keys)) as service,
        RemoteJournal(service.address, "unauthorised", timeout=0.2) as unauthorised,
    ):
        while unauthorised._socket.poll(10, zmq.POLLOUT):  # ended by the test's timeout
            pass
        with pytest.raises(Unreachable):
            unauthorised.span(Span("x", "y", 1.0, 2.0))
        assert not service.counts


def test_closing_a_service_leaves_no_threads_and_sockets(keys: ServerKeys) -> None:
    before, connections = zmq_threads(), listening()
    for _ in range(3):
        opened = weight_service(None, keys=keys)  # type: ignore[arg-type]
        assert zmq_threads() > before
        opened.close()
        Service(object, None, keys=keys).close()
        with pytest.raises(OSError, match="cannot listen at tcp://192\\.0\\.2\\.77:"):
            exchange_service(None, "tcp://192.0.2.77:*", keys=keys)  # type: ignore[arg-type]  # not an address of this machine
    wait_until(lambda: zmq_threads() <= before)  # the system may end a thread a moment later
    assert listening() == connections


def zmq_threads() -> set[int]:
    """The threads of ZeroMQ; libraries in this process may start others at any time."""
    found = set()
    for thread in psutil.Process().threads():
        with suppress(OSError):  # it has ended
            if Path(f"/proc/self/task/{thread.id}/comm").read_text().startswith("ZMQ"):
                found.add(thread.id)
    return found
