"""Authentication of a run's sockets: CURVE keys, created once per run. Checks which addresses need them.

```
RUN/keys/server.key    the services' key pair                       stays with the hub
RUN/keys/worker.key    the services' public key, the workers' pair   grants access; also authenticates the server

Service ── CurveAuthenticator ── bind ── CURVE: only the worker key ──── TCP ──── connect ── Client
```

A socket on any interface but loopback requires keys, and no socket listens on all interfaces. With keys, all traffic is
encrypted and both sides are authenticated. A client with a wrong key or none is rejected in ZeroMQ's handshake, before
its messages reach our code.

Key files are TOML, readable by their owner alone. To change a run's keys, delete `RUN/keys` and resume the run.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from common.errors import ConfigError
from common.messages import WorkerKey

KEYS, SERVER, WORKER = "keys", "server.key", "worker.key"  # a folder in the run folder, and its files
DOMAIN = "douga"  # ZAP domain: selects the authentication rule of a socket
MAX_FILE_BYTES = 4096
FIELDS = {"server": ("public", "secret"), "worker": ("server", "public", "secret")}  # kind of file -> its keys


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The services' own key pair, and the one client key that they accept."""

    public: str
    secret: str = field(repr=False)
    worker: WorkerKey


# Key files.


def make_or_read(folder: Path) -> ServerKeys:
    """Read the keys in `folder`. If it does not exist, create it atomically with new keys.

    Raises:
        ConfigError: a file is readable by others or broken, or the files do not belong together.
    """
    if not folder.exists():
        _make(folder)
    own, worker = _read(folder / SERVER, "server"), read_worker_key(folder / WORKER)
    if worker.server != own["public"]:
        raise ConfigError(f"{folder}: {WORKER} is for another server than {SERVER}; delete {folder} for new keys")
    return ServerKeys(own["public"], own["secret"], worker)


def read_worker_key(file: Path) -> WorkerKey:
    """Read a copy of ``worker.key``. Raises `ConfigError` if others may read it, or if it is not a worker key."""
    return WorkerKey(**_read(file, "worker"))


def _make(folder: Path) -> None:
    (public, secret), (worker_public, worker_secret) = (_pair(), _pair())
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a crash
        draft.mkdir(mode=0o700)
        _write(draft / SERVER, "server", {"public": public, "secret": secret})
        _write(draft / WORKER, "worker", {"server": public, "public": worker_public, "secret": worker_secret})
        draft.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: keys cannot be written: {error.strerror}") from None


def _pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _write(file: Path, kind: str, values: Mapping[str, str]) -> None:
    lines = [f'kind = "{kind}"  # key of a douga run; keep it secret like a password']
    lines += [f'{name} = "{value}"' for name, value in values.items()]  # Z85 has neither quotes nor backslashes
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write("\n".join(lines) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def _read(file: Path, kind: str) -> dict[str, str]:
    """Read and check a key file of `kind`. Errors never contain the file's content."""
    try:
        data = tomllib.loads(_private_text(file))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"{file}: not a key file: not valid TOML") from None
    if data.get("kind") != kind:
        raise ConfigError(f"{file}: not a {kind} key file: its kind is {data.get('kind')!r:.20}")
    values = {name: str(data.get(name)) for name in FIELDS[kind]}
    if data.keys() != {"kind", *values} or not all(map(_is_key, values.values())):
        raise ConfigError(f"{file}: broken: it must hold {', '.join(values)} of 40 characters each, and nothing else")
    if zmq.curve_public(values["secret"].encode()).decode() != values["public"]:
        raise ConfigError(f"{file}: broken: public and secret do not belong together")
    return values


def _private_text(file: Path) -> str:
    """The text of a regular file that only its owner may read."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # do not block on a named pipe
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{file}: not a key file: not a regular file")
            if mode & 0o077:
                shown = stat.S_IMODE(mode)
                raise ConfigError(f"{file}: others than its owner may use it (mode {shown:04o}): chmod 600 {file}")
            return opened.read(MAX_FILE_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the key file: {error.strerror}") from None


def _is_key(value: str) -> bool:
    try:
        return len(z85.decode(value)) == 32
    except Exception:  # z85.decode raises various errors on bad input
        return False


# Addresses and sockets.


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback IP address."""
    address = _ip(host)
    return address is not None and address.is_loopback


def check_listening(address: str, keyed: bool) -> None:
    """Raise `ConfigError` unless ``tcp://IP:PORT`` is a single interface: loopback, or any other one with keys."""
    host = _host(address)
    ip = _ip(host)
    if ip is None or ip.is_unspecified:  # zmq accepts "*", "0" and interface names, which can open more than one
        raise ConfigError(f"{address}: all interfaces or a name: listen at one IP address of this machine")
    if not keyed and not ip.is_loopback:
        raise ConfigError(f"{address}: off loopback a service needs keys, or anybody could use it")


def check_reaching(address: str, keyed: bool) -> None:
    """Raise `ConfigError` unless ``tcp://HOST:PORT`` is on this machine or there is a key."""
    host = _host(address)
    if not keyed and host != "localhost" and not is_loopback(host):
        raise ConfigError(f"{address}: off loopback a key is needed (the run's RUN/{KEYS}/{WORKER})")


def _use_ipv6_for(socket: zmq.Socket[Any], address: str) -> None:
    """Allows IPv6 for an IPv6 address only: a name may resolve to one first, but services listen at one IPv4 address.

    ZeroMQ tries the first address of a name and no other.
    """
    ip = _ip(_host(address))
    socket.setsockopt(zmq.IPV6, int(ip is not None and ip.version == 6))


def _host(address: str) -> str:
    found = re.fullmatch(r"tcp://(\[.+\]|.+):(\*|[0-9]{1,5})", address)
    if found is None or (found[2] != "*" and int(found[2]) > 65535):
        raise ConfigError(f"{address}: not an address: tcp://HOST:PORT is needed")
    return found[1].strip("[]")


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class CurveAuthenticator:
    """Authenticates clients of all server sockets of one ZeroMQ context.

    With `keys`, only clients that hold the worker key are accepted. Without, sockets may only listen on loopback and
    accept anyone. Close the sockets first, then this, then the context.
    """

    def __init__(self, context: zmq.Context[Any], keys: ServerKeys | None) -> None:
        self._keys = keys
        self._authenticator: ThreadAuthenticator | None = None
        if keys is not None:
            self._authenticator = ThreadAuthenticator(context)
            provider = _SingleKeyProvider(keys.worker.public)
            self._authenticator.configure_curve_callback(domain=DOMAIN, credentials_provider=provider)
            self._authenticator.start()

    def bind(self, socket: zmq.Socket[Any], address: str) -> None:
        """Bind `socket` to `address`. Raises `ConfigError` if the address is not allowed."""
        check_listening(address, self._keys is not None)
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._keys.secret)
            socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # reject clients while the authenticator is not running
        _use_ipv6_for(socket, address)
        socket.bind(address)

    def close(self) -> None:
        """Stop the authenticator thread."""
        if self._authenticator is not None:
            self._authenticator.stop()


class _SingleKeyProvider:
    """pyzmq's credentials provider: accepts one public key."""

    def __init__(self, public: str) -> None:
        self._public = public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public


def connect(socket: zmq.Socket[Any], address: str, key: WorkerKey | None) -> None:
    """Connect `socket` to `address`. Raises `ConfigError` if that is another machine and there is no key."""
    check_reaching(address, key is not None)
    if key is not None:
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, key.server)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, key.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, key.secret)
    _use_ipv6_for(socket, address)
    socket.connect(address)
