"""Base class of all workers: connections, heartbeat, shutdown."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Event

from common.config import RunConfig
from common.errors.places import keep_place
from common.exchange.api import Leases, Work
from common.exchange.remote import Heartbeat, RemoteExchange
from common.roles import role_of
from deploy.logs.forward import ForwardingHandler, Send
from deploy.logs.process import logging_to
from deploy.logs.redaction import secrets_of
from deploy.observability.exporter import ProcessMetrics, exporting, own_address
from deploy.runtime.messages import Addresses
from deploy.runtime.oom import OutOfMemory, needed_by
from deploy.runtime.workers.remote_journal import RemoteJournal
from deploy.runtime.workers.threads import set_worker_threads

IDLE_SECONDS, LONGEST_IDLE = 0.02, 0.32  # poll interval of an idle worker; doubles up to the second value
IDLE = "douga_idle_seconds_total"
BEATS = 4  # heartbeats per lease_seconds
LOG_SECONDS = 1.0  # timeout per request that sends log records to the hub


class Worker(ABC):
    """One worker process. `run` returns when the role's work is done, or after `stop`, called from another thread."""

    def __init__(self, config: RunConfig, name: str) -> None:
        self.config, self.name, self.role = config, name, role_of(name)
        self.metrics = ProcessMetrics(self.role)
        self.metrics.add(IDLE, 0.0, role=self.role)
        self.stopping = Event()
        self.logs = ForwardingHandler()
        self._idle, self._worked, self._seen = IDLE_SECONDS, False, 0

    def stop(self) -> None:
        """Stops after the current unit of work."""
        self.stopping.set()

    def rest(self, done: object) -> None:
        """Backs off if nothing was `done`: the wait doubles each time. For what `wait_for` cannot wait for."""
        if done:
            self._idle, self._worked = IDLE_SECONDS, True
            return
        began = time.perf_counter()
        self.stopping.wait(self._idle)
        self.metrics.add(IDLE, time.perf_counter() - began, role=self.role)
        self._idle = min(2 * self._idle, LONGEST_IDLE)

    def wait_for(self, work: Work, exchange: Leases | None, done: object) -> None:
        """Waits at the exchange if nothing was `done`, until there may be work again, for at most a second.

        Does not wait without an exchange, as in a learner rank that follows another one.
        """
        self._worked |= bool(done)
        if done or exchange is None:
            return
        began = time.perf_counter()
        self._seen = exchange.changes(work, self._seen)
        self.metrics.add(IDLE, time.perf_counter() - began, role=self.role)

    def run(self, addresses: Addresses) -> None:
        """Connects, works, disconnects. Sets `OutOfMemory.worked` if a unit of work had succeeded before."""
        with self._logged(addresses):
            try:
                with needed_by(self.name, self.config):
                    self._run(addresses)
            except OutOfMemory as error:
                error.worked = self._worked
                raise
            except Exception as error:
                keep_place(error)  # Ray pickles the error, without its traceback
                raise

    @contextmanager
    def _logged(self, addresses: Addresses) -> Iterator[None]:
        """Sends the log records of this process to the hub, over a separate connection with a short timeout."""
        for secret in secrets_of(self.config, os.environ):
            self.logs.redact.hide(secret)
        if addresses.key is not None:
            self.logs.redact.hide(addresses.key.secret)

        @contextmanager
        def connect() -> Iterator[Send]:
            with RemoteJournal.at(addresses.journal, self.name, addresses.key, LOG_SECONDS) as journal:
                yield partial(journal.log, self.name)

        self.logs.start(connect)
        try:
            with logging_to(self.logs, self.config, self.name):
                yield
        finally:
            self.logs.stop()

    def _run(self, addresses: Addresses) -> None:
        set_worker_threads(self.config)
        beat = self.config.exchange.lease_seconds / BEATS

        def exchange() -> RemoteExchange:
            return RemoteExchange.at(addresses.exchange, self.name, addresses.key)

        with ExitStack() as stack:
            mine = stack.enter_context(exchange())
            journal = stack.enter_context(RemoteJournal.at(addresses.journal, self.name, addresses.key))
            stack.enter_context(Heartbeat(exchange, self.name, beat))
            if self.config.metrics.enabled:
                host = own_address(addresses.journal)
                at = stack.enter_context(exporting(self.metrics, host, self.config.metrics.port))
                journal.exporting(self.name, at)
            self.work(addresses, mine, journal, stack)

    @abstractmethod
    def work(self, addresses: Addresses, exchange: RemoteExchange, journal: RemoteJournal, stack: ExitStack) -> None:
        """The role's loop. Register resources to close at its end on `stack`."""
