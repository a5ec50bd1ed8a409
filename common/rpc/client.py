"""The client side of remote calls over ZeroMQ. A `Protocol` class is the interface; its annotations are the schema.

```
DEALER  {"client": "3f..", "id": 17, "call": "lease_sampling"}  ["sampler-0", 3]   ──>  ROUTER
        {"id": 17}                                           SamplingLease | None  <──
        {"id": 17, "error": "ValueError", "message": "..."}                     <──
```

A `Service` (`common/rpc/server.py`) serves an object that implements the interface. A `Client` subclass decorated with
`calling(interface)` has the same methods and forwards them.

A request that times out is sent again over a new connection with the same id. The server recognises the retry and does
not run the call twice (see there).
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from threading import RLock
from typing import Any, Self, TypeVar
from uuid import uuid4

import zmq

from common.errors import BAD_INPUT, StorageError
from common.messages import WorkerKey
from common.rpc.codec import LIMITS, Frames, Limits, WireError, pack, unpack
from common.rpc.curve import check_reaching, connect
from common.rpc.interface import Call, calls

TIMEOUT_SECONDS, ATTEMPTS = 10.0, 12  # seconds per attempt; a restarted hub is reached within one attempt


class Unreachable(ConnectionError):
    """No answer after all attempts. The message names the client, the call and the server's address."""


class ServiceFailed(RuntimeError):
    """The call raised an unexpected error on the server. The message holds that error's class and message."""


# Server errors that are raised as the same class on the client; all others become `ServiceFailed`.
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (*BAD_INPUT, StorageError, ValueError, WireError)
}


class Client:
    """A connection to the service at `address`. Thread-safe: threads take turns, one request at a time.

    `who` names this client in errors. With `key`, the connection is encrypted and both sides are authenticated. Call
    `close` at the end, or use it in a ``with``.
    """

    def __init__(
        self,
        address: str,
        who: str,
        timeout: float = TIMEOUT_SECONDS,
        limits: Limits = LIMITS,
        key: WorkerKey | None = None,
        attempts: int | None = None,
    ) -> None:
        check_reaching(address, key is not None)
        self.address, self.who, self._key = address, who, key
        self._timeout, self._limits, self._attempts = timeout, limits, attempts or ATTEMPTS
        self._client, self._number = uuid4().hex, 0
        self._lock = RLock()
        self._context = zmq.Context()
        self._socket = self._connect()

    @classmethod
    def at(
        cls,
        address: str,
        who: str,
        key: WorkerKey | None = None,
        timeout: float = TIMEOUT_SECONDS,
        attempts: int | None = None,
    ) -> Self:
        """Like the constructor, whose signature type checkers do not see in subclasses of a `Protocol`."""
        return cls(address, who, timeout, key=key, attempts=attempts)

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._limits.blob)
        socket.setsockopt(zmq.SNDTIMEO, round(1000 * self._timeout))  # sending blocks if the handshake was rejected
        connect(socket, self.address, self._key)
        return socket

    def ask(self, call: Call, arguments: tuple[Any, ...]) -> Any:
        """Send one request and wait for its answer, with retries.

        Raises:
            Unreachable: no answer after all attempts.
            ServiceFailed: the call failed on the server; errors in `ERRORS` are raised as themselves instead.
        """
        with self._lock:
            number, request = self._request(call, arguments)
            for _ in range(self._attempts):
                with suppress(zmq.Again):
                    self._socket.send_multipart(request, copy=False)
                    answer = self._await(number)
                    if answer is not None:
                        return self._read(call, answer)
                self._socket.close()
                self._socket = self._connect()
        raise self._unreachable(call)

    def _request(self, call: Call, arguments: tuple[Any, ...]) -> tuple[int, list[bytes]]:
        with self._lock:
            self._number += 1
            return self._number, pack({"client": self._client, "id": self._number, "call": call.name}, list(arguments))

    def _unreachable(self, call: Call) -> Unreachable:
        seconds = self._attempts * self._timeout
        hint = "; is the key from this run?" if self._key else ""
        return Unreachable(f"{self.who}: {call.name}: no answer from {self.address} in {seconds:g} s{hint}")

    def _await(self, number: int) -> Any:
        """The answer to request `number`, or None on a timeout. Late answers to earlier requests are dropped."""
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0 and self._socket.poll(round(1000 * left) + 1):
            answer = unpack(self._socket.recv_multipart(), self._limits)
            if answer.header.get("id") == number:
                return answer
        return None

    def stream(self, call: Call, argument_lists: Iterable[tuple[Any, ...]], window: int) -> Generator[Any, None, None]:
        """Make one call per argument list, pipelined: `window` requests are in flight over a separate connection.

        Yields the answers in order; `bytes` are views of the received frames. Requests without an answer are sent again
        after a timeout, so the call must be `repeatable`. Close the generator if you stop early.
        """
        requests = (self._request(call, arguments) for arguments in argument_lists)
        waiting: deque[tuple[int, list[bytes]]] = deque()
        arrived: dict[int, Frames] = {}
        socket, attempts, deadline = self._connect(), 1, time.monotonic() + self._timeout
        try:
            while True:
                for number, request in islice(requests, window - len(waiting)):
                    waiting.append((number, request))
                    _send(socket, request)
                if not waiting:
                    return
                if waiting[0][0] in arrived:
                    yield self._read(call, arrived.pop(waiting.popleft()[0]))
                    attempts, deadline = 1, time.monotonic() + self._timeout
                elif (left := deadline - time.monotonic()) > 0:
                    if socket.poll(round(1000 * left) + 1):
                        frames: Any = [frame.buffer for frame in socket.recv_multipart(copy=False)]
                        answer = unpack(frames, self._limits)
                        if answer.header.get("id") in {number for number, _ in waiting}:
                            arrived[answer.header["id"]] = answer
                elif attempts == self._attempts:
                    raise self._unreachable(call)
                else:
                    socket.close()
                    socket, attempts, deadline = self._connect(), attempts + 1, time.monotonic() + self._timeout
                    for _, request in waiting:
                        _send(socket, request)
        finally:
            socket.close()

    def _read(self, call: Call, answer: Any) -> Any:
        name = answer.header.get("error")
        if name is None:
            return answer.read(call.answer, call.name)
        message = answer.header.get("message")
        if not isinstance(name, str) or not isinstance(message, str):
            raise WireError(f"{call.name}: an error reply without a name or a message")
        raise ERRORS[name](message) if name in ERRORS else ServiceFailed(f"{call.name}: {name}: {message}")

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _send(socket: zmq.Socket[bytes], request: Sequence[bytes]) -> None:
    """Send if possible. If not, the missing answer leads to a retry."""
    with suppress(zmq.Again):
        socket.send_multipart(request)


ClientClass = TypeVar("ClientClass", bound=type[Client])


def calling(interface: type) -> Callable[[ClientClass], ClientClass]:
    """Class decorator: adds the interface's methods to a `Client`, except those that the class defines itself."""

    def add_methods(client: ClientClass) -> ClientClass:
        for call in calls(interface).values():
            if call.name not in vars(client):
                setattr(client, call.name, _method(call))
        return client

    return add_methods


def _method(call: Call) -> Any:
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([own, *call.parameters])

    def method(self: Client, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        return self.ask(call, bound.args[1:])

    method.__name__, method.__doc__ = call.name, call.doc
    return property(method) if call.is_property else method
