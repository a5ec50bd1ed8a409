"""The exchange as a worker elsewhere sees it: `RunExchange` by way of an `ExchangeService`.

Every wait has an end: a request that stays without answer is sent again over a fresh connection, under the same id,
and after `ATTEMPTS` of them `ExchangeUnreachable` says who waited for whom.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from threading import Event, RLock, Thread
from typing import Any
from uuid import uuid4

import zmq

from common.config import ConfigError
from common.exchange.audit import ConservationError
from common.exchange.client import RunExchange
from common.exchange.service import Call, calls
from common.wire import LIMITS, Limits, WireError, pack, unpack

TIMEOUT_SECONDS, ATTEMPTS = 30.0, 4


class ExchangeUnreachable(ConnectionError):
    """No answer after all attempts."""


class ExchangeFailed(RuntimeError):
    """The exchange itself broke on a request: its error's name and words."""


# What a worker may expect by name; everything else is an `ExchangeFailed`.
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ConfigError, ConservationError, ValueError, WireError)
}


class RemoteExchange(RunExchange):
    """Asks the service at `address`. Thread-safe: one request is under way at a time.

    `worker` names the asker in errors. `close` it, or use it in a ``with``.
    """

    def __init__(self, address: str, worker: str, timeout: float = TIMEOUT_SECONDS, limits: Limits = LIMITS) -> None:
        self.address, self.worker = address, worker
        self._timeout, self._limits = timeout, limits
        self._client, self._number = uuid4().hex, 0
        self._lock = RLock()
        self._context = zmq.Context()
        self._socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._limits.blob)
        socket.connect(self.address)
        return socket

    def ask(self, call: Call, arguments: tuple[Any, ...]) -> Any:
        """Send one request and wait for its answer; errors of the exchange are raised here as what they were."""
        with self._lock:
            self._number += 1
            request = pack({"client": self._client, "id": self._number, "call": call.name}, list(arguments))
            for _ in range(ATTEMPTS):
                self._socket.send_multipart(request)
                answer = self._await(self._number)
                if answer is not None:
                    return self._read(call, answer)
                self._socket.close()
                self._socket = self._connect()
        seconds = ATTEMPTS * self._timeout
        raise ExchangeUnreachable(f"{self.worker}: {call.name}: no answer from {self.address} in {seconds:g} s")

    def _await(self, number: int) -> Any:
        """The answer to request `number`; late answers to earlier ones are dropped. None when time is up."""
        while self._socket.poll(round(1000 * self._timeout)):
            answer = unpack(self._socket.recv_multipart(), self._limits)
            if answer.header.get("id") == number:
                return answer
        return None

    def _read(self, call: Call, answer: Any) -> Any:
        name = answer.header.get("error")
        if name is None:
            return answer.read(call.answer, call.name)
        words = str(answer.header.get("message"))
        raise ERRORS[name](words) if name in ERRORS else ExchangeFailed(f"{call.name}: {name}: {words}")

    def close(self) -> None:
        """Let go of the connection. Leases stay as they are."""
        with self._lock:
            self._socket.close()
            self._context.term()

    def __enter__(self) -> RemoteExchange:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _method(call: Call) -> Any:
    signature = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *call.parameters]
    )

    def method(self: RemoteExchange, *positional: Any, **named: Any) -> Any:
        bound = signature.bind(self, *positional, **named)
        bound.apply_defaults()
        return self.ask(call, bound.args[1:])

    method.__name__ = call.name
    method.__doc__ = inspect.getdoc(getattr(RunExchange, call.name))
    return property(method) if call.is_property else method


for _one in calls().values():
    setattr(RemoteExchange, _one.name, _method(_one))


class Heartbeat:
    """``with Heartbeat(connect, worker, seconds):`` renews all leases of `worker` every `seconds` on a thread.

    It has a connection of its own: the worker's may be busy with a long request. A beat that fails is not the end:
    the next one may arrive, and a lease that ran out all the same is refused at its submit.
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
                except (ExchangeUnreachable, ExchangeFailed, WireError):
                    self.failed += 1

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=ATTEMPTS * TIMEOUT_SECONDS)
