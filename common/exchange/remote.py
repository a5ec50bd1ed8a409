"""`WorkerExchange` over the network, for workers in other processes (see `common/rpc/client.py`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread

from common.errors import StorageError
from common.exchange.api import Submitted, WorkerExchange
from common.messages import Candidate, Conditioning, SamplingLease
from common.rpc.client import Client, ServiceFailed, Unreachable, calling
from common.rpc.codec import LIMITS, Limits, WireError
from common.rpc.curve import ServerKeys
from common.rpc.interface import calls
from common.rpc.server import LOOPBACK, Service

log = logging.getLogger(__name__)

CALLS = calls(WorkerExchange)
THREADS = 16  # concurrent calls; they mostly wait for the disk


def exchange_service(
    exchange: WorkerExchange, address: str = LOOPBACK, limits: Limits = LIMITS, keys: ServerKeys | None = None
) -> Service:
    """Create a service at `address` that serves the workers' calls of `exchange`."""
    return Service(WorkerExchange, exchange, address, limits, keys, THREADS)


@calling(WorkerExchange)
class RemoteExchange(Client, WorkerExchange):
    """Implements `WorkerExchange` by calling the service at `address`."""

    def submit_conditioning(self, lease: SamplingLease, conditioning: Conditioning) -> Submitted:
        """See `SamplerExchange.submit_conditioning`."""
        return self.ask(CALLS["submit_conditioning"], (_without_image(lease), conditioning))

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> Submitted:
        """See `SamplerExchange.submit_candidate`."""
        return self.ask(CALLS["submit_candidate"], (_without_image(lease), candidate))


def _without_image(lease: SamplingLease) -> SamplingLease:
    """Drop the first frame before sending: the exchange already has it."""
    return replace(lease, prompt=replace(lease.prompt, image=None))


class Heartbeat:
    """``with Heartbeat(connect, worker, seconds):`` renews all leases of `worker` every `seconds` on a thread.

    It uses a separate connection, because the worker's may be busy with a long request. A failed heartbeat is logged
    and counted in `failed`; the next one may succeed. If a lease expires anyway, the exchange rejects its submit.
    """

    def __init__(self, connect: Callable[[], RemoteExchange], worker: str, seconds: float) -> None:
        self.failed = 0
        self._connect, self._worker, self._seconds = connect, worker, seconds
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"heartbeat-{worker}", daemon=True)

    def _run(self) -> None:
        with self._connect() as exchange:
            while not self._stop.wait(self._seconds):
                try:
                    exchange.renew(self._worker)
                except (Unreachable, ServiceFailed, StorageError, WireError) as error:
                    self.failed += 1
                    log.warning("leases not renewed: %s", error)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
