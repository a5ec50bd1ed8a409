"""An external worker: joins a live run from outside its Ray cluster, works, and leaves. The worker's side.

It needs the run's address and key, and copies of the models that it uses. `deploy/runtime/external_workers.py` is the
hub's side.
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

from common.config import parse_config
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

# What may differ from machine to machine.
OWN_KEYS = ("model.path", "model.device", "reward.path", "pairs", "cluster.threads", "metrics.enabled")
OF_JUDGES = ("path", "url", "token_file")  # of reward.judges.NAME, likewise
ASK_SECONDS = 5.0  # a try; there are several
AGAIN_SECONDS = 2.0  # between two tries to join
LOOK_SECONDS = 0.2  # between two looks whether to stop


def work(role: str, connect: str, key_file: Path | None, patience: float, flags: Mapping[str, Any]) -> int:
    """Returns 0 when the run is over or the worker was stopped, 3 when the run was unreachable for `patience` seconds.

    Raises `OutOfMemory` if this machine is too small for the role; the run continues without it.
    """
    for name in flags:
        if not _is_own(name.replace("-", "_")):
            own = ", ".join((*OWN_KEYS, *(f"reward.judges.NAME.{key}" for key in OF_JUDGES)))
            raise ConfigError(f"--{name}: a guest takes the run's configuration; its own are {own}")
    key = read_worker_key(key_file) if key_file else None
    with stop_on_signals() as stop:
        visit = Visit(role=role, connect=connect, key=key, flags=flags, stop=stop)
        heard = time.monotonic()
        while not stop():
            try:
                if visit.make():
                    return 0
                heard = time.monotonic()
            except (Unreachable, ServiceFailed) as error:
                if time.monotonic() - heard > patience:
                    _say(f"douga: {error}; given up after {patience:g} s (--patience)")
                    return 3
            time.sleep(AGAIN_SECONDS)
    return 0


@dataclass
class Visit:
    """One stay at a run, and another one when its hub has come back."""

    role: str
    connect: str
    key: WorkerKey | None
    flags: Mapping[str, Any]
    stop: Callable[[], bool]
    _last: MembershipState = MembershipState.WELCOME  # at the run, when it was last asked
    _logs: ForwardingHandler = field(default_factory=ForwardingHandler)  # what a lost hub did not take goes to the next

    def make(self) -> bool:
        """Join, work, leave. True when the run is over or the worker was stopped; False when the hub was lost."""
        with RemoteRegistry.at(self.connect, f"a {self.role}", self.key, ASK_SECONDS) as reception:
            config = parse_config(reception.configuration(), f"the run at {self.connect}", self.flags)
            worker_class = _worker_class(self.role)
            welcome: Registration = reception.join(self.role, fingerprint_of(config, self.role))
            self._last = MembershipState.WELCOME
            _say(f"{welcome.name}: at work for run {config.name} at {self.connect}; Ctrl-C leaves")
            self._work(worker_class(config, welcome.name), welcome.addresses(self.connect, self.key), reception)
        if self._last is MembershipState.STRANGER:
            _say(f"{welcome.name}: the run's hub at {self.connect} is gone; trying to join again")
            return False
        _say(f"{welcome.name}: {'left' if self._last is MembershipState.WELCOME else 'the run is over'}")
        return True

    def _work(self, worker: Worker, addresses: Addresses, reception: RemoteRegistry) -> None:
        worker.logs = self._logs
        beat = Thread(target=self._beat, args=(reception, worker), name="stay", daemon=True)
        beat.start()
        try:
            worker.run(addresses)
        except (Unreachable, ServiceFailed) as error:
            if self._last is MembershipState.WELCOME:  # the hub was lost amid a call
                _say(f"{worker.name}: {error}")
                self._last = MembershipState.STRANGER
        finally:
            worker.stop()
            beat.join()
            if self._last is not MembershipState.STRANGER:  # who fails leaves as well: its leases are free at once
                with suppress(Unreachable, ServiceFailed):
                    reception.leave(worker.name)

    def _beat(self, reception: RemoteRegistry, worker: Worker) -> None:
        """Say that the worker is there, and tell it when to stop: asked to, at the end of the run, without a hub."""
        asked = 0.0
        while not worker.stopping.wait(LOOK_SECONDS):
            if self.stop():
                worker.stop()
            elif time.monotonic() - asked >= BEAT_SECONDS:
                asked = time.monotonic()
                if self._standing(reception, worker.name) is not MembershipState.WELCOME:
                    worker.stop()

    def _standing(self, reception: RemoteRegistry, name: str) -> MembershipState:
        try:
            self._last = reception.stay(name)
        except (Unreachable, ServiceFailed):
            self._last = MembershipState.STRANGER
        return self._last


def _is_own(key: str) -> bool:
    of_judge = key.startswith("reward.judges.") and key.count(".") == 3 and key.rpartition(".")[2] in OF_JUDGES
    return key in OWN_KEYS or of_judge


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _worker_class(role: str) -> type[Worker]:
    if role == "sampler":
        from deploy.runtime.workers.sampler import SamplerWorker  # noqa: PLC0415 - each role imports what it needs

        return SamplerWorker
    from deploy.runtime.workers.rewarder import RewarderWorker  # noqa: PLC0415

    return RewarderWorker
