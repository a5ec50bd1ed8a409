"""Workers from outside: they come to a live run, work, and leave when they like. The hub's side.

```
douga worker sampler --connect tcp://HOST:PORT --key worker.key
   │ configuration() ──> the run's configuration, TOML        the guest opens its own copy of the model
   │ join(role, fingerprint) ──> Welcome: a name and ports    refused when the copy differs
   │ stay(name), every BEAT_SECONDS ──> Standing: welcome, stranger, over
   └ leave(name)                                              its leases are free at once
```

A guest is a worker like all others: it leases, renews and submits. Who vanishes without a word loses its leases when
they run out, and counts as gone after `GONE_SECONDS`.
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
from common.models.fingerprint import TOON_PIPELINE, fingerprint
from common.rpc.client import Client, calling
from common.rpc.curve import ServerKeys
from common.rpc.server import LOOPBACK, Service
from deploy.runtime.messages import Addresses
from deploy.runtime.offline_pairs import open_pairs

log = logging.getLogger(__name__)

ROLES = ("sampler", "rewarder")
BEAT_SECONDS, GONE_SECONDS = 2.0, 20.0
FAREWELL_SECONDS = 15.0  # for guests to hear that the run is over


class MembershipState(StrEnum):
    """How a guest stands with the hub."""

    WELCOME = "welcome"
    STRANGER = "stranger"  # another start of the run than the one it has joined: join again
    OVER = "over"  # the run is at its end: leave


@dataclass(frozen=True, slots=True)
class Registration:
    """Leave to work. Hub -> guest. The services are at the host the guest has connected to."""

    name: str  # under which it leases
    exchange: int  # ports
    journal: int
    weights: int
    notes: int

    def addresses(self, connect: str, key: WorkerKey | None) -> Addresses:
        """Where the services are for a guest that reached the hub at `connect`."""
        host = connect.rpartition(":")[0]
        return Addresses(
            exchange=f"{host}:{self.exchange}",
            journal=f"{host}:{self.journal}",
            weights=f"{host}:{self.weights}",
            notes=f"{host}:{self.notes}",
            folder=Path(),
            key=key,
        )


class Registry(Protocol):
    """What a guest may ask."""

    def configuration(self) -> str:
        """The run's configuration, TOML."""
        ...

    def join(self, role: str, fingerprint: str) -> Registration:
        """Take part as a `role`. `ConfigError` when guests cannot be that, or hold another model than the run's."""
        ...

    def stay(self, name: str) -> MembershipState:
        """I am still there."""
        ...

    def leave(self, name: str) -> None:
        """I am going."""
        ...


class ExternalWorkers:
    """A `Registry`. Thread-safe. `release` frees the leases of a worker that has gone."""

    def __init__(
        self,
        config: RunConfig,
        addresses: Addresses,
        release: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._addresses, self._release, self._clock = config, addresses, release, clock
        self._seen: dict[str, float] = {}
        self._silent: set[str] = set()  # those that were logged as gone
        self._next = {role: config.cluster.placement_of(role).count for role in ROLES}
        self._over = False
        self._changed = Condition()

    def configuration(self) -> str:
        """See `Registry`."""
        return to_toml(self._config)

    def join(self, role: str, fingerprint: str) -> Registration:
        """See `Registry`."""
        if role not in ROLES:
            raise ConfigError(f"a guest can be a {' or a '.join(ROLES)}, not a {role!r:.20}")
        if fingerprint != fingerprint_of(self._config, role):
            judged = [f"reward.judges.{name}.path" for name in self._config.reward.judges]
            keys = ["model.path"] if role == "sampler" else ["reward.path", *judged]
            keys += ["pairs"] if self._config.pairs else []
            raise ConfigError(f"{' or '.join(keys)}: not the files that the run has; copy them from there")
        with self._changed:
            name = f"{role}-{self._next[role]}"
            self._next[role] += 1
            self._seen[name] = self._clock()
        log.info("%s joined from outside the cluster", name)
        at = self._addresses
        ports = (urlsplit(address).port or 0 for address in (at.exchange, at.journal, at.weights, at.notes))
        return Registration(name, *ports)

    def stay(self, name: str) -> MembershipState:
        """See `Registry`."""
        with self._changed:
            if self._over:
                return MembershipState.OVER
            if name not in self._seen:
                return MembershipState.STRANGER
            self._seen[name] = self._clock()
            return MembershipState.WELCOME

    def leave(self, name: str) -> None:
        """See `Registry`."""
        with self._changed:
            if self._seen.pop(name, None) is not None:
                self._silent.discard(name)
                log.info("%s left", name)
                self._release(name)
            self._changed.notify_all()

    def count(self, role: str) -> int:
        """Guests of a role that were heard of lately."""
        with self._changed:
            return sum(name.startswith(role) for name in self._present())

    def _present(self) -> list[str]:
        return [name for name, seen in self._seen.items() if self._clock() - seen <= GONE_SECONDS]

    def absent(self) -> set[str]:
        """Guests that have vanished without a word, or are about to come back."""
        with self._changed:
            absent = self._seen.keys() - set(self._present())
            for name in sorted(absent - self._silent):
                log.warning("%s was not heard of for %g s: it counts as gone", name, GONE_SECONDS)
            for name in sorted(self._silent - absent):
                log.info("%s is back", name)
            self._silent = absent
            return absent

    def dismiss(self) -> None:
        """The run is over: guests are told so when they next ask, and waited for a while."""
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: not self._present(), FAREWELL_SECONDS)


def fingerprint_of(config: RunConfig, role: str) -> str:
    """Of the files that the role's work depends on, besides published weights."""
    if config.simulate:
        return "simulated"
    parts = [open_pairs(config).digest] if config.pairs else []
    if role == "sampler":
        return " ".join([*parts, _fingerprint(config.model.path, "pipeline")])
    reward = config.reward
    parts += [_fingerprint(reward.path, "heads")] if reward.path else []
    parts += [_fingerprint(judge.path) for judge in reward.judges.values() if Path(judge.path or "-").is_dir()]
    return " ".join(parts)


def _fingerprint(path: str, embedded: str = "") -> str:
    return fingerprint(TOON_PIPELINE.parent / embedded if embedded and path == "toon" else Path(path))


def reception_service(guests: ExternalWorkers, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """A service that answers for `guests`."""
    return Service(Registry, guests, address, keys=keys)


@calling(Registry)
class RemoteRegistry(Client, Registry):
    """The calls of `Registry`, made by way of the service at `address`."""
