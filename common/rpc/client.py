"""Calls over ZeroMQ: a `Protocol` class is the interface, its annotations are the schema.

```
DEALER  {"client": "3f..", "id": 17, "call": "lease_group"}  ["sampler-0", 3]   ──>  ROUTER
        {"id": 17}                                           GroupLease | None  <──
        {"id": 17, "error": "ValueError", "message": "..."}                     <──
```

A `Service` (`common/rpc/server.py`) answers for an object that has the interface's methods; a `Client` subclass made
with `calling(interface)` has them too.

A client that got no answer sends the same request again over a fresh connection, under the same id, and gets the same
answer: see there.
"""

from __future__ import annotations

import inspect
import time
import typing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from threading import RLock
from typing import Any, Self, TypeVar
from uuid import uuid4

import zmq

from common.errors import BAD_INPUT, StorageError
from common.messages import WorkerKey
from common.rpc.codec import LIMITS, Frames, Limits, WireError, pack, unpack
from common.rpc.curve import check_reaching, connect

TIMEOUT_SECONDS, ATTEMPTS = 10.0, 12  # of a client that waits; a hub that starts again is found within one

Method = TypeVar("Method", bound=Callable[..., Any])


class Unreachable(ConnectionError):
    """No answer after all attempts; says who waited for whom."""


class ServiceFailed(RuntimeError):
    """The service itself broke on a request: its error's name and words."""


# What a caller may expect by name; everything else arrives as a `ServiceFailed`.
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (*BAD_INPUT, StorageError, ValueError, WireError)
}


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that may be asked: its parameters in order, and the annotations of both directions."""

    name: str
    parameters: tuple[inspect.Parameter, ...]
    kinds: tuple[Any, ...]
    answer: Any
    is_property: bool  # read rather than called
    repeatable: bool
    doc: str


@cache
def calls(interface: type) -> dict[str, Call]:
    """All public methods and properties of an interface by name."""
    return {name: _call(interface, name) for name in dir(interface) if not name.startswith("_")}


def _call(interface: type, name: str) -> Call:
    member: Any = inspect.getattr_static(interface, name)
    function: Any = member.fget if isinstance(member, property) else member
    hints = typing.get_type_hints(function)
    parameters = tuple(inspect.signature(function).parameters.values())[1:]
    kinds = tuple(hints[one.name] for one in parameters)
    doc = inspect.getdoc(function) or ""
    is_property, again = isinstance(member, property), hasattr(function, "repeatable")
    return Call(name, parameters, kinds, hints["return"], is_property, again, doc)


def repeatable(method: Method) -> Method:
    """Marks a method of an interface that may be called twice for once: its answers, large perhaps, are not kept."""
    method.repeatable = True  # type: ignore[attr-defined]
    return method


class Client:
    """Asks the service at `address`. Thread-safe: one request is under way at a time.

    `who` names the asker in errors; with `key` both sides prove who they are. `close` it, or use it in a ``with``.
    """

    def __init__(
        self,
        address: str,
        who: str,
        timeout: float = TIMEOUT_SECONDS,
        limits: Limits = LIMITS,
        key: WorkerKey | None = None,
    ) -> None:
        check_reaching(address, key is not None)
        self.address, self.who, self._key = address, who, key
        self._timeout, self._limits = timeout, limits
        self._client, self._number = uuid4().hex, 0
        self._lock = RLock()
        self._context = zmq.Context()
        self._socket = self._connect()

    @classmethod
    def at(cls, address: str, who: str, key: WorkerKey | None = None, timeout: float = TIMEOUT_SECONDS) -> Self:
        """A client of the service at `address`; it has the interface's methods, which type checkers do not see."""
        return cls(address, who, timeout, key=key)

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._limits.blob)
        socket.setsockopt(zmq.SNDTIMEO, round(1000 * self._timeout))  # who was turned away has nowhere to send to
        connect(socket, self.address, self._key)
        return socket

    def ask(self, call: Call, arguments: tuple[Any, ...]) -> Any:
        """Send one request and wait for its answer; its errors are raised here as what they were."""
        with self._lock:
            number, request = self._request(call, arguments)
            for _ in range(ATTEMPTS):
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
        seconds = ATTEMPTS * self._timeout
        perhaps = "; is the key that of this run?" if self._key else ""
        return Unreachable(f"{self.who}: {call.name}: no answer from {self.address} in {seconds:g} s{perhaps}")

    def _await(self, number: int) -> Any:
        """The answer to request `number`; late answers to earlier ones are dropped. None when time is up."""
        ends = time.monotonic() + self._timeout
        while (left := ends - time.monotonic()) > 0 and self._socket.poll(round(1000 * left) + 1):
            answer = unpack(self._socket.recv_multipart(), self._limits)
            if answer.header.get("id") == number:
                return answer
        return None

    def stream(self, call: Call, each: Iterable[tuple[Any, ...]], ahead: int) -> Generator[Any, None, None]:
        """The answers to `call` with each of these arguments, in order; close it when you leave before the end.

        `ahead` requests are under way at once, over a connection of their own. What has no answer in time is sent
        again, so the call must be `repeatable`. `bytes` come as views of what was received.
        """
        requests = (self._request(call, arguments) for arguments in each)
        waiting: deque[tuple[int, list[bytes]]] = deque()
        arrived: dict[int, Frames] = {}
        socket, attempts, ends = self._connect(), 1, time.monotonic() + self._timeout
        try:
            while True:
                for number, request in islice(requests, ahead - len(waiting)):
                    waiting.append((number, request))
                    _send(socket, request)
                if not waiting:
                    return
                if waiting[0][0] in arrived:
                    yield self._read(call, arrived.pop(waiting.popleft()[0]))
                    attempts, ends = 1, time.monotonic() + self._timeout
                elif (left := ends - time.monotonic()) > 0:
                    if socket.poll(round(1000 * left) + 1):
                        frames: Any = [frame.buffer for frame in socket.recv_multipart(copy=False)]
                        answer = unpack(frames, self._limits)
                        if answer.header.get("id") in {number for number, _ in waiting}:
                            arrived[answer.header["id"]] = answer
                elif attempts == ATTEMPTS:
                    raise self._unreachable(call)
                else:
                    socket.close()
                    socket, attempts, ends = self._connect(), attempts + 1, time.monotonic() + self._timeout
                    for _, request in waiting:
                        _send(socket, request)
        finally:
            socket.close()

    def _read(self, call: Call, answer: Any) -> Any:
        name = answer.header.get("error")
        if name is None:
            return answer.read(call.answer, call.name)
        words = answer.header.get("message")
        if not isinstance(name, str) or not isinstance(words, str):
            raise WireError(f"{call.name}: an error without a name or words")
        raise ERRORS[name](words) if name in ERRORS else ServiceFailed(f"{call.name}: {name}: {words}")

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _send(socket: zmq.Socket[bytes], request: Sequence[bytes]) -> None:
    """Send, unless there is nobody to send to: then there will be no answer either."""
    with suppress(zmq.Again):
        socket.send_multipart(request)


ClientClass = TypeVar("ClientClass", bound=type[Client])


def calling(interface: type) -> Callable[[ClientClass], ClientClass]:
    """A class decorator that gives a `Client` the methods of an interface that it does not define itself."""

    def dress(client: ClientClass) -> ClientClass:
        for call in calls(interface).values():
            if call.name not in vars(client):
                setattr(client, call.name, _method(call))
        return client

    return dress


def _method(call: Call) -> Any:
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([own, *call.parameters])

    def method(self: Client, *positional: Any, **named: Any) -> Any:
        bound = signature.bind(self, *positional, **named)
        bound.apply_defaults()
        return self.ask(call, bound.args[1:])

    method.__name__, method.__doc__ = call.name, call.doc
    return property(method) if call.is_property else method
