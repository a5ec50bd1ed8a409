"""Who is let in at a run's sockets: CURVE keys, made once per run, and the one rule for addresses.

```
RUN/keys/server.key    the services' own pair                       stays with the hub
RUN/keys/worker.key    the services' public key, the workers' pair   whoever has it is let in, and knows who answers

Service ── Door ── bind ── CURVE: only the worker key ──── TCP ──── connect ── Client
```

Off loopback there are keys or there is no socket; all interfaces at once are never listened at. With keys, all bytes
are encrypted and both sides prove who they are; another key, or none, gets no answer and reaches nothing of ours.

The files are TOML, readable by their owner alone. To change the keys of a run, delete `RUN/keys` and resume it.
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

KEYS, SERVER, WORKER = "keys", "server.key", "worker.key"  # a folder in the run's, and the files in it
DOMAIN = "douga"  # of the authentication: names the rule that a socket enforces
LARGEST = 4096  # bytes of a key file
FIELDS = {"server": ("public", "secret"), "worker": ("server", "public", "secret")}  # kind of file -> what is in it


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The services' own pair, and the one key that they let in."""

    public: str
    secret: str = field(repr=False)
    worker: WorkerKey


# The files.


def make_or_read(folder: Path) -> ServerKeys:
    """The keys in `folder`, which is made with new ones when it is not there: whole, or not at all.

    `ConfigError` for files that others may read, that are broken, or that do not belong together.
    """
    if not folder.exists():
        _make(folder)
    own, worker = _read(folder / SERVER, "server"), read_worker_key(folder / WORKER)
    if worker.server != own["public"]:
        raise ConfigError(f"{folder}: {WORKER} is for another server than {SERVER}; delete {folder} for new keys")
    return ServerKeys(own["public"], own["secret"], worker)


def read_worker_key(file: Path) -> WorkerKey:
    """The key in a copy of ``worker.key``. `ConfigError` when others may read it, or it is none."""
    return WorkerKey(**_read(file, "worker"))


def _make(folder: Path) -> None:
    (public, secret), (worker_public, worker_secret) = (_pair(), _pair())
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a start that died here
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
    lines = [f'kind = "{kind}"  # of a douga run; keep it as you keep a password']
    lines += [f'{name} = "{value}"' for name, value in values.items()]  # Z85 has neither quotes nor backslashes
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write("\n".join(lines) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def _read(file: Path, kind: str) -> dict[str, str]:
    """The keys in a file of `kind`, all checked. No error repeats what is in the file."""
    try:
        data = tomllib.loads(_private_text(file))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"{file}: no key file: not valid TOML") from None
    if data.get("kind") != kind:
        raise ConfigError(f"{file}: the key file of a {kind} is needed, not of {data.get('kind')!r:.20}")
    values = {name: str(data.get(name)) for name in FIELDS[kind]}
    if data.keys() != {"kind", *values} or not all(map(_is_key, values.values())):
        raise ConfigError(f"{file}: broken: {', '.join(values)} of 40 characters each are needed, and nothing else")
    if zmq.curve_public(values["secret"].encode()).decode() != values["public"]:
        raise ConfigError(f"{file}: broken: public and secret do not belong together")
    return values


def _private_text(file: Path) -> str:
    """The text of a regular file that only its owner may read."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # a pipe is not waited for
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{file}: no key file: not a regular file")
            if mode & 0o077:
                shown = stat.S_IMODE(mode)
                raise ConfigError(f"{file}: others than its owner may use it (mode {shown:04o}): chmod 600 {file}")
            return opened.read(LARGEST).decode()
    except OSError as error:
        raise ConfigError(f"{file}: no key file: {error.strerror}") from None


def _is_key(value: str) -> bool:
    try:
        return len(z85.decode(value)) == 32
    except Exception:  # it raises whatever its arithmetic meets
        return False


# The rule for addresses, and the sockets.


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can be at `host`, an IP address."""
    address = _ip(host)
    return address is not None and address.is_loopback


def check_listening(address: str, keyed: bool) -> None:
    """`ConfigError` unless ``tcp://IP:PORT`` is one interface of this machine: loopback, or another one with keys."""
    host = _host(address)
    ip = _ip(host)
    if ip is None or ip.is_unspecified:  # zmq takes "*", "0" and interfaces' names: what they open is not seen here
        raise ConfigError(f"{address}: not all interfaces and no name: listen at one IP address of this machine")
    if not keyed and not ip.is_loopback:
        raise ConfigError(f"{address}: off loopback a service needs keys, or everybody could use it")


def check_reaching(address: str, keyed: bool) -> None:
    """`ConfigError` unless ``tcp://HOST:PORT`` is on this machine or there is a key."""
    host = _host(address)
    if not keyed and host != "localhost" and not is_loopback(host):
        raise ConfigError(f"{address}: off loopback a key is needed (RUN/{KEYS}/{WORKER} of the run)")


def _host(address: str) -> str:
    found = re.fullmatch(r"tcp://(\[.+\]|.+):(\*|\d+)", address)
    if found is None:
        raise ConfigError(f"{address}: no address: tcp://HOST:PORT is needed")
    return found[1].strip("[]")


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class CurveAuthenticator:
    """Opens the sockets of one context to who may come in. `close` it after its sockets and before the context.

    With `keys`, that is who holds the worker key. Without, whoever is on this machine.
    """

    def __init__(self, context: zmq.Context[Any], keys: ServerKeys | None) -> None:
        self._keys = keys
        self._authenticator: ThreadAuthenticator | None = None
        if keys is not None:
            self._authenticator = ThreadAuthenticator(context)
            self._authenticator.configure_curve_callback(domain=DOMAIN, credentials_provider=_Only(keys.worker.public))
            self._authenticator.start()

    def bind(self, socket: zmq.Socket[Any], address: str) -> None:
        """Listen at `address`. `ConfigError` where that is not allowed, before anything is bound."""
        check_listening(address, self._keys is not None)
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._keys.secret)
            socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody comes in while nobody is asked
        socket.bind(address)

    def close(self) -> None:
        """End the thread that is asked who may come in."""
        if self._authenticator is not None:
            self._authenticator.stop()


class _Only:
    """What pyzmq asks about a client's key."""

    def __init__(self, public: str) -> None:
        self._public = public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public


def connect(socket: zmq.Socket[Any], address: str, key: WorkerKey | None) -> None:
    """Reach for the service at `address`. `ConfigError` when it is elsewhere and there is no key."""
    check_reaching(address, key is not None)
    if key is not None:
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, key.server)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, key.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, key.secret)
    socket.connect(address)
