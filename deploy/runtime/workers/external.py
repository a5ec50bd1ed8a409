"""`douga worker`: joins a live run from outside its Ray cluster, works, and leaves. The worker's side.

It needs the run's address and key, and copies of the models that it uses. The hub's side is in
`deploy/runtime/external_workers.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from common.config import is_of_machine, of_machine_text, parse_config
from common.errors import ConfigError
from common.messages import WorkerKey
from common.rpc.client import ServiceFailed, Unreachable
from common.rpc.curve import read_worker_key
from deploy.logs.forward import ForwardingHandler
from deploy.run_dir.signals import stop_on_signals
from deploy.runtime.external_workers import (
    BEAT_SECONDS,
    MembershipState,
    Registration,
    RemoteRegistry,
    fingerprint_of,
)
from deploy.runtime.messages import Addresses
from deploy.runtime.workers.base import Worker

ASK_SECONDS = 5.0  # timeout per attempt of a request
LEAST_ASK_SECONDS = 0.2  # of the last attempt before the patience ends
RETRY_SECONDS = 2.0  # between two attempts to join
POLL_SECONDS = 0.2  # between two checks whether to stop


def work(role: str, connect: str, key_file: Path | None, patience: float, flags: Mapping[str, Any]) -> int:
    """Works for the run at `connect` as a `role`. `flags` are configuration keys of this machine.

    Returns 0 if the run is over or the worker was stopped, 3 if the run was unreachable for `patience` seconds. Raises
    `ConfigError` for bad flags, and `OutOfMemory` if this machine has too little memory; the run continues without it.
    """
    for name in flags:
        if not is_of_machine(name.replace("-", "_")):
            own = of_machine_text()
            raise ConfigError(f"--{name}: an external worker uses the run's configuration; it can only set {own}")
    key = read_worker_key(key_file) if key_file else None
    with stop_on_signals() as stop:
        membership = _Membership(role=role, connect=connect, key=key, flags=flags, stop=stop)
        ends = time.monotonic() + patience
        while not stop():
            left = max(ends - time.monotonic(), LEAST_ASK_SECONDS)
            try:
                if membership.run(min(ASK_SECONDS, left)):
                    return 0
                ends = time.monotonic() + patience
            except (Unreachable, ServiceFailed) as error:
                if time.monotonic() >= ends:
                    _print(f"douga: {_reason(error, connect, key)}; gave up after {patience:g} s (--patience)")
                    return 3
            time.sleep(max(0.0, min(RETRY_SECONDS, ends - time.monotonic())))
    return 0


def _reason(error: Exception, connect: str, key: WorkerKey | None) -> str:
    """Why the run could not be joined. The time-out of the last attempt, which `Unreachable` names, does not matter."""
    if not isinstance(error, Unreachable):
        return str(error)
    return f"no run answers at {connect}{'; is the key from this run?' if key else ''}"


@dataclass
class _Membership:
    """Membership of a run. `run` can be called again after the hub was lost."""

    role: str
    connect: str
    key: WorkerKey | None
    flags: Mapping[str, Any]
    stop: Callable[[], bool]
    _last: MembershipState = MembershipState.ACTIVE  # the hub's latest answer
    _logs: ForwardingHandler = field(default_factory=ForwardingHandler)  # unsent records go to the next hub

    def run(self, seconds: float = ASK_SECONDS) -> bool:
        """Joins, works, leaves. Returns True if the run is over or the worker stopped, False if the hub was lost.

        Raises `Unreachable` if the hub does not answer within `seconds`."""
        who = f"a {self.role}"
        with RemoteRegistry.at(self.connect, who, self.key, seconds, attempts=1) as first:
            text = first.configuration()
        with RemoteRegistry.at(self.connect, who, self.key, ASK_SECONDS) as registry:
            config = parse_config(text, f"the run at {self.connect}", self.flags)
            worker_class = _worker_class(self.role)
            registration: Registration = registry.join(self.role, fingerprint_of(config, self.role))
            self._last = MembershipState.ACTIVE
            _print(f"{registration.name}: working for run {config.name} at {self.connect}; Ctrl-C leaves the run")
            self._work(
                worker_class(config, registration.name), registration.addresses(self.connect, self.key), registry
            )
        if self._last is MembershipState.UNKNOWN:
            _print(f"{registration.name}: the run's hub at {self.connect} is unreachable; trying to join again")
            return False
        _print(f"{registration.name}: {'left' if self._last is MembershipState.ACTIVE else 'the run is over'}")
        return True

    def _work(self, worker: Worker, addresses: Addresses, registry: RemoteRegistry) -> None:
        worker.logs = self._logs
        beat = Thread(target=self._beat, args=(registry, worker), name="heartbeat", daemon=True)
        beat.start()
        try:
            worker.run(addresses)
        except (Unreachable, ServiceFailed) as error:
            if self._last is MembershipState.ACTIVE:  # the hub was lost during a call
                _print(f"{worker.name}: {error}")
                self._last = MembershipState.UNKNOWN
        finally:
            worker.stop()
            beat.join()
            if self._last is not MembershipState.UNKNOWN:  # also after an error: releases the leases at once
                with suppress(Unreachable, ServiceFailed):
                    registry.leave(worker.name)

    def _beat(self, registry: RemoteRegistry, worker: Worker) -> None:
        """Sends heartbeats. Stops the worker on request, at the end of the run, or if the hub is lost."""
        asked = 0.0
        while not worker.stopping.wait(POLL_SECONDS):
            if self.stop():
                worker.stop()
            elif time.monotonic() - asked >= BEAT_SECONDS:
                asked = time.monotonic()
                if self._heartbeat(registry, worker.name) is not MembershipState.ACTIVE:
                    worker.stop()

    def _heartbeat(self, registry: RemoteRegistry, name: str) -> MembershipState:
        try:
            self._last = registry.heartbeat(name)
        except (Unreachable, ServiceFailed):
            self._last = MembershipState.UNKNOWN
        return self._last


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _worker_class(role: str) -> type[Worker]:
    if role == "sampler":
        from deploy.runtime.workers.sampler import SamplerWorker  # noqa: PLC0415 - each role imports what it needs

        return SamplerWorker
    from deploy.runtime.workers.rewarder import RewarderWorker  # noqa: PLC0415

    return RewarderWorker
