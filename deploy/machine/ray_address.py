"""Whether a Ray listens at an address. Asked before connecting, because Ray retries for minutes and fills stderr.

```
HOST:PORT ──> can a TCP connection be made? ──> `ray status` in a child process ──> connect
                TCP_SECONDS                       STATUS_SECONDS once it has loaded
```
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from platform import python_version
from queue import Empty, SimpleQueue
from select import select
from threading import Thread

from common.errors import ConfigError

TCP_SECONDS = 5.0  # for the name to resolve and one of its addresses to accept
LOAD_SECONDS = 60.0  # for the child process to import Ray, from a slow disk too
STATUS_SECONDS = 6.0  # a Ray that works answers in less than one
ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|(?!-)[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
LOADED = b"loaded\n"
STATUS = """\
import sys
from ray.scripts.scripts import cli
print("loaded", flush=True)
try:
    cli(["status", "--address", sys.argv[1]], standalone_mode=False)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
OTHER_RAY = re.compile(r"Ray version mismatch: cluster has Ray version (\S+) but local Ray version is (\S+)")
OTHER_PYTHON = re.compile(r"Version mismatch: The cluster was started with: Ray: (\S+) Python: (\S+)")


def check_ray(name: str, address: str) -> None:
    """Raises `ConfigError` unless a Ray answers at `address`, ``HOST:PORT`` or "auto". `name` is where it was set."""
    fault = _fault(address)
    if fault:
        raise ConfigError(f"{name} = {address!r}: no Ray can be reached there: {fault}")


def _fault(address: str) -> str:
    if address != "auto":
        fault = _address_fault(address)
        if fault:
            return fault
    return _ray_fault(address)


def _address_fault(address: str) -> str:
    found = ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        return "give HOST:PORT of the head, as `ray start` prints it (port 6379 unless set), or 'auto'"
    host, port = found["host"].strip("[]"), int(found["port"])
    answers: SimpleQueue[str] = SimpleQueue()
    Thread(target=lambda: answers.put(_connection_fault(host, port)), daemon=True).start()  # resolving has no timeout
    try:
        return answers.get(timeout=TCP_SECONDS)
    except Empty:
        return f"no answer within {TCP_SECONDS:g} s"


def _connection_fault(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=TCP_SECONDS).close()
    except socket.gaierror as error:
        return f"{host}: {error.strerror}"
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _ray_fault(address: str) -> str:
    """Asks for Ray's status. Of the child's messages only the error counts: gRPC repeats each failed attempt."""
    words = [sys.executable, "-c", STATUS, address]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    try:
        if not select([child.stdout], [], [], LOAD_SECONDS)[0] or not os.read(child.stdout.fileno(), len(LOADED)):
            return f"{sys.executable} cannot load Ray"
        _, said = child.communicate(timeout=STATUS_SECONDS)
    except subprocess.TimeoutExpired:
        return f"what listens there does not answer as Ray does within {STATUS_SECONDS:g} s"
    finally:
        child.kill()
        child.wait()
    if not child.returncode:
        return ""
    words_of_ray = refusal(said.decode("utf-8", "replace"))
    return words_of_ray or (
        "no Ray runs on this machine" if address == "auto" else "what listens there is not the head of a Ray"
    )


def refusal(said: str) -> str:
    """Why a Ray that does answer refuses this process, from its words `said`; "" if they name no known reason."""
    line = " ".join(said.split())
    other = OTHER_RAY.search(line)
    if other:
        return f"Ray {other[1]} runs there, and this is Ray {other[2]}: install the same version on all nodes"
    other = OTHER_PYTHON.search(line)
    if other:
        return (
            f"Ray {other[1]} with Python {other[2]} runs there, and this is Python {python_version()}: use the same "
            "versions on all nodes"
        )
    if "InvalidAuthToken" in line:
        return (
            "that Ray wants a token: set RAY_AUTH_MODE=token, and have its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    return ""
