"""Whom to scrape: ``RUN/prometheus/targets.json``, in the form of Prometheus' file_sd, whole at every moment.

```
RUN/prometheus/targets.json   the run's own processes, labelled by TARGET_LABELS of `observability/definitions.py`
RUN/prometheus/ray.json       Ray's exporters, one a node: ray_... series, of the cluster as a whole
```

A process is listed while it works: who dies, leaves or is at its end is taken out, and after the run both lists are
empty. They stay only where everything was killed at once, until the run is started again.
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
from common.errors.disk import write_whole
from common.roles import role_of
from deploy.run_dir import layout

FOLDER, OWN, RAY = "prometheus", "targets.json", "ray.json"
MOST, NAME = 4096, 64  # targets of a run, characters of a worker's name


class Targets:
    """The lists of one run. Thread-safe. Raises `StorageError` where the disk refuses."""

    def __init__(self, folder: Path, run: str) -> None:
        """Empty ones, whatever an earlier start has left there."""
        self._folder, self._run, self._lock = folder / FOLDER, run, Lock()
        self._at: dict[str, str] = {}  # worker -> HOST:PORT
        self._absent: frozenset[str] = frozenset()
        self._written: dict[str, str] = {}  # file -> what is there
        self._folder.mkdir(exist_ok=True)
        self.clear()

    def put(self, worker: str, address: str) -> None:
        """`worker` is at ``HOST:PORT``. `ValueError` for an address that is none, and for too many targets.

        Loopback addresses are not listed beside others: they are those of a guest behind a tunnel, and elsewhere mean
        another machine.
        """
        _check(worker, address)
        with self._lock:
            if len(self._at) >= MOST and worker not in self._at:
                raise ValueError(f"{MOST} targets are there; no more are listed")
            self._at[worker] = address
            self._write()

    def remove(self, workers: Collection[str]) -> None:
        """They work no longer."""
        with self._lock:
            for worker in workers:
                self._at.pop(worker, None)
            self._write()

    def hide(self, absent: Iterable[str]) -> None:
        """These, of all, were not heard of for a while."""
        with self._lock:
            now, before = frozenset(absent), self._absent
            if now != before:  # this is asked several times a second
                self._absent = now
                self._write()

    def workers(self, role: str) -> list[str]:
        """Those of a role that are there."""
        with self._lock:
            return [worker for worker in self._at if _process(worker) == role and worker not in self._absent]

    def ray(self, addresses: Collection[str]) -> None:
        """Ray's own exporters."""
        labels = {"run": self._run, "process": "ray"}
        with self._lock:
            self._put(RAY, [{"targets": sorted(addresses), "labels": labels}] if addresses else [])

    def clear(self) -> None:
        """Nobody is there."""
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
    """Afterwards the lists are empty, also when their process was killed, unless somebody else holds the folder."""
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
    """What is written down is later asked by Prometheus: an IP address and a port, no path, no name."""
    place = urlsplit(f"//{address}")
    ip_address(place.hostname or "")
    if not place.port or address not in (f"{place.hostname}:{place.port}", f"[{place.hostname}]:{place.port}"):
        raise ValueError(f"{address!r:.60}: not HOST:PORT")
    if len(worker) > NAME or not worker.isprintable():
        raise ValueError(f"a worker's name has at most {NAME} characters, all printable")
