"""External workers join a live run from outside its Ray cluster and leave at any time. The hub's side.

```
douga worker sampler --connect tcp://HOST:PORT --key worker.key
   │ configuration() ──> the run's configuration, TOML        the worker opens its own copy of the model
   │ join(role, fingerprint) ──> Registration: name and ports refused if the copy differs
   │ heartbeat(name), every BEAT_SECONDS ──> MembershipState: active, unknown, over
   └ leave(name)                                              its leases are released at once
```

An external worker leases, renews and submits like any other worker. If it disappears without `leave`, its leases
expire, and it counts as gone after `GONE_SECONDS` without a heartbeat.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Condition
from typing import Protocol
from urllib.parse import urlsplit

from common.config import RunConfig, to_toml
from common.errors import ConfigError
from common.messages import WorkerKey
from common.models.fingerprint import TOON_PIPELINE, fingerprint, model_folder
from common.rpc.client import Client, calling
from common.rpc.curve import ServerKeys
from common.rpc.server import LOOPBACK, Service
from deploy.runtime.inputs.offline_pairs import open_pairs
from deploy.runtime.messages import Addresses

log = logging.getLogger(__name__)

ROLES = ("sampler", "rewarder")
BEAT_SECONDS, GONE_SECONDS = 2.0, 20.0
LEAVE_SECONDS = 15.0  # timeout for external workers to learn that the run is over


class MembershipState(StrEnum):
    """The hub's answer to a heartbeat of an external worker."""

    ACTIVE = "active"
    UNKNOWN = "unknown"  # unknown to this start of the run: join again
    OVER = "over"  # the run has finished: leave


@dataclass(frozen=True, slots=True)
class Registration:
    """Accepts an external worker. Hub -> worker. The services are on the host that the worker connected to."""

    name: str  # worker name for leases
    exchange: int  # ports
    journal: int
    weights: int

    def addresses(self, connect: str, key: WorkerKey | None) -> Addresses:
        """Returns the services' addresses for a worker that reached the hub at `connect`, ``tcp://HOST:PORT``."""
        host = connect.rpartition(":")[0]
        return Addresses(
            exchange=f"{host}:{self.exchange}",
            journal=f"{host}:{self.journal}",
            weights=f"{host}:{self.weights}",
            folder=Path(),
            key=key,
        )


class Registry(Protocol):
    """Requests of external workers."""

    def configuration(self) -> str:
        """The run's configuration, TOML."""
        ...

    def join(self, role: str, fingerprint: str) -> Registration:
        """Joins as a `role`. Raises `ConfigError` if the role is not open to external workers, or the model differs."""
        ...

    def heartbeat(self, name: str) -> MembershipState:
        """Heartbeat."""
        ...

    def leave(self, name: str) -> None:
        """Leaves the run; the worker's leases are released."""
        ...


class ExternalWorkers:
    """A `Registry`. Thread-safe. `release` is called with the name of a worker that left."""

    def __init__(
        self,
        config: RunConfig,
        addresses: Addresses,
        release: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._addresses, self._release, self._clock = config, addresses, release, clock
        self._seen: dict[str, float] = {}
        self._silent: set[str] = set()  # workers already logged as gone
        self._next = {role: config.cluster.placement_of(role).count for role in ROLES}
        self._over = False
        self._changed = Condition()

    def configuration(self) -> str:
        """See `Registry`."""
        return to_toml(self._config)

    def join(self, role: str, fingerprint: str) -> Registration:
        """See `Registry`."""
        if role not in ROLES:
            raise ConfigError(f"an external worker can be a {' or a '.join(ROLES)}, not a {role!r:.20}")
        if fingerprint != fingerprint_of(self._config, role):
            judged = [f"reward.judges.{name}.path" for name in self._config.reward.judges]
            keys = ["model.path"] if role == "sampler" else ["reward.path", *judged]
            keys += [key for key in ("pairs", "candidates") if getattr(self._config, key)]
            raise ConfigError(f"{' or '.join(keys)}: not the same files as the run's; copy the run's files")
        with self._changed:
            name = f"{role}-{self._next[role]}"
            self._next[role] += 1
            self._seen[name] = self._clock()
        log.info("%s joined from outside the cluster", name)
        at = self._addresses
        ports = (urlsplit(address).port or 0 for address in (at.exchange, at.journal, at.weights))
        return Registration(name, *ports)

    def heartbeat(self, name: str) -> MembershipState:
        """See `Registry`."""
        with self._changed:
            if self._over:
                return MembershipState.OVER
            if name not in self._seen:
                return MembershipState.UNKNOWN
            self._seen[name] = self._clock()
            return MembershipState.ACTIVE

    def leave(self, name: str) -> None:
        """See `Registry`."""
        with self._changed:
            if self._seen.pop(name, None) is not None:
                self._silent.discard(name)
                log.info("%s left", name)
                self._release(name)
            self._changed.notify_all()

    def count(self, role: str) -> int:
        """Number of external workers of a role with a recent heartbeat."""
        with self._changed:
            return sum(name.startswith(role) for name in self._present())

    def _present(self) -> list[str]:
        return [name for name, seen in self._seen.items() if self._clock() - seen <= GONE_SECONDS]

    def absent(self) -> set[str]:
        """Returns the names of external workers without a recent heartbeat. Logs changes."""
        with self._changed:
            absent = self._seen.keys() - set(self._present())
            for name in sorted(absent - self._silent):
                log.warning("%s sent no heartbeat for %g s and counts as gone", name, GONE_SECONDS)
            for name in sorted(self._silent - absent):
                log.info("%s is back", name)
            self._silent = absent
            return absent

    def announce_end(self) -> None:
        """Answers heartbeats with `OVER` from now on; waits up to `LEAVE_SECONDS` for the workers to leave."""
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: not self._present(), LEAVE_SECONDS)


def fingerprint_of(config: RunConfig, role: str) -> str:
    """Returns a fingerprint of the files that the role depends on, besides published weights."""
    if config.simulate:
        return "simulated"
    parts = [open_pairs(config).digest] if config.pairs else []
    if config.candidates:
        from common.candidate_set.groups import open_groups  # noqa: PLC0415 - imports torch

        parts.append(open_groups(config).set.digest)
    if role == "sampler":
        return " ".join([*parts, fingerprint(model_folder(config.model.path))])
    reward = config.reward
    heads = TOON_PIPELINE.parent / "heads" if reward.path == "toon" else Path(reward.path)
    parts += [fingerprint(heads)] if reward.path else []
    judges = [Path(judge.path) for judge in reward.judges.values() if judge.path]
    parts += [fingerprint(judge) for judge in judges if judge.is_dir()]
    return " ".join(parts)


def registry_service(workers: ExternalWorkers, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """Creates the service for external workers."""
    return Service(Registry, workers, address, keys=keys)


@calling(Registry)
class RemoteRegistry(Client, Registry):
    """Client of the `Registry` service."""
