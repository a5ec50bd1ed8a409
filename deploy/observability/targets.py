"""Prometheus scrape targets of a run: ``RUN/prometheus/targets.json`` in file_sd format, replaced atomically.

```
RUN/prometheus/targets.json   the run's own processes, labelled by TARGET_LABELS of `observability/definitions.py`
RUN/prometheus/ray.json       Ray's exporters, one per node: ray_... series of the whole cluster
```

A process is listed while it runs: it is removed when it crashes, leaves or finishes, and both lists are empty after the
run. Entries are left behind only if all processes were killed at once, until the run is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from common.errors import ConfigError, StorageError
from common.files import write_whole
from common.roles import role_of
from deploy.run_dir import layout

FOLDER, OWN, RAY = "prometheus", "targets.json", "ray.json"
MOST, NAME = 4096, 64  # maximum number of targets of a run, and length of a worker's name


class Targets:
    """The target lists of one run. Thread-safe. Raises `StorageError` if the disk fails."""

    def __init__(self, folder: Path, run: str) -> None:
        """Starts with empty lists and overwrites those of an earlier start."""
        self._folder, self._run, self._lock = folder / FOLDER, run, Lock()
        self._at: dict[str, str] = {}  # worker -> HOST:PORT
        self._absent: frozenset[str] = frozenset()
        self._written: dict[str, str] = {}  # file -> its content
        self._folder.mkdir(exist_ok=True)
        self.clear()

    def put(self, worker: str, address: str) -> None:
        """Adds or updates a worker at ``HOST:PORT``. Raises `ValueError` for a malformed address or too many targets.

        Loopback addresses are left out if there are others: they belong to external workers behind a tunnel, and
        Prometheus on another machine could not reach them.
        """
        _check(worker, address)
        with self._lock:
            if len(self._at) >= MOST and worker not in self._at:
                raise ValueError(f"{MOST} targets are listed already, the maximum")
            self._at[worker] = address
            self._write()

    def remove(self, workers: Collection[str]) -> None:
        """Removes workers."""
        with self._lock:
            for worker in workers:
                self._at.pop(worker, None)
            self._write()

    def hide(self, absent: Iterable[str]) -> None:
        """Leaves out the workers in `absent` (no recent heartbeat) until the next call."""
        with self._lock:
            now, before = frozenset(absent), self._absent
            if now != before:  # called several times a second
                self._absent = now
                self._write()

    def workers(self, role: str) -> list[str]:
        """Returns the names of a role's workers that are listed and not hidden."""
        with self._lock:
            return [worker for worker in self._at if _process(worker) == role and worker not in self._absent]

    def ray(self, addresses: Collection[str]) -> None:
        """Sets the addresses of Ray's own exporters."""
        labels = {"run": self._run, "process": "ray"}
        with self._lock:
            self._put(RAY, [{"targets": sorted(addresses), "labels": labels}] if addresses else [])

    def clear(self) -> None:
        """Empties both lists."""
        with self._lock:
            self._at = {}
            self._write()
            if (self._folder / RAY).exists():
                self._put(RAY, [])

    def _write(self) -> None:
        hosts = {worker: _host(address) for worker, address in self._at.items() if worker not in self._absent}
        near = {worker for worker, host in hosts.items() if ip_address(host).is_loopback}
        listed = near if len(near) == len(hosts) else hosts.keys() - near
        self._put(
            OWN,
            [
                {
                    "targets": [self._at[worker]],
                    "labels": {"run": self._run, "process": _process(worker), "worker": worker, "node": host},
                }
                for worker, host in sorted(hosts.items())
                if worker in listed
            ],
        )

    def _put(self, file: str, content: list[dict]) -> None:
        text = json.dumps(content, indent=1) + "\n"
        if self._written.get(file) != text:
            write_whole(self._folder / file, text)
            self._written[file] = text


@contextmanager
def swept(folder: Path) -> Iterator[None]:
    """Empties the lists after the block, even if the hub was killed, unless another process holds the folder."""
    try:
        yield
    finally:
        if (folder / FOLDER).exists():
            with suppress(ConfigError, StorageError), layout.lock(folder):
                Targets(folder, folder.name)


def _process(worker: str) -> str:
    return role_of(worker) or worker


def _host(address: str) -> str:
    return urlsplit(f"//{address}").hostname or ""


def _check(worker: str, address: str) -> None:
    """Prometheus will request this address: only an IP address and a port are allowed, no host name and no path."""
    place = urlsplit(f"//{address}")
    ip_address(place.hostname or "")
    if not place.port or address not in (f"{place.hostname}:{place.port}", f"[{place.hostname}]:{place.port}"):
        raise ValueError(f"{address!r:.60}: not HOST:PORT")
    if len(worker) > NAME or not worker.isprintable():
        raise ValueError(f"a worker's name has at most {NAME} characters, all printable")
