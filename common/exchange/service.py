"""The exchange over the network: a ZeroMQ ROUTER in front of a `RunExchange`.

```
DEALER  {"client": "3f..", "id": 17, "call": "lease_group"}  ["sampler-0", 3]   ──>  ROUTER
        {"id": 17}                                           GroupLease | None  <──
        {"id": 17, "error": "ValueError", "message": "..."}                     <──
```

The calls are those of `RunExchange`, and its annotations say what may be in a message (`common/wire.py`). One thread
answers one request after the other, in the order of their arrival: the ledger behind it has one writer anyway.

A client that got no answer sends the same request again, under the same id, and gets the same answer: the last one of
every client is kept. So a lease whose answer was lost on the way is not leased a second time.
"""

from __future__ import annotations

import inspect
import logging
import typing
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Any

import zmq

from common.exchange.client import RunExchange
from common.wire import LIMITS, Frames, Limits, WireError, pack, unpack

log = logging.getLogger(__name__)

LOOPBACK = "tcp://127.0.0.1:*"
POLL_SECONDS = 0.02  # how long a stop may go unnoticed
CLIENTS = 1024  # last answers kept


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that may be asked: its parameters in order, and the annotations of both directions."""

    name: str
    parameters: tuple[inspect.Parameter, ...]
    kinds: tuple[Any, ...]
    answer: Any

    @property
    def is_property(self) -> bool:
        """Whether it is read rather than called."""
        return isinstance(inspect.getattr_static(RunExchange, self.name), property)


@cache
def calls() -> dict[str, Call]:
    """All calls of `RunExchange` by name."""
    return {name: _call(name) for name in dir(RunExchange) if not name.startswith("_")}


def _call(name: str) -> Call:
    member = inspect.getattr_static(RunExchange, name)
    function = member.fget if isinstance(member, property) else member
    hints = typing.get_type_hints(function)
    parameters = tuple(inspect.signature(function).parameters.values())[1:]
    return Call(name, parameters, tuple(hints[one.name] for one in parameters), hints["return"])


class ExchangeService:
    """Answers for `exchange` at `address` until told to stop. Bound at once: `.address` is where clients connect.

    `counts` are requests by call, and under ``error`` those that were refused.
    """

    def __init__(self, exchange: RunExchange, address: str = LOOPBACK, limits: Limits = LIMITS) -> None:
        self.counts: Counter[str] = Counter()
        self._exchange, self._limits = exchange, limits
        self._answers: OrderedDict[str, tuple[int, list[bytes]]] = OrderedDict()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.blob)  # a larger frame closes its connection unread
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(f"exchange: cannot listen at {address}: {error}") from None
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def serve(self, stop: Event) -> None:
        """Answer until `stop` is set."""
        while not stop.is_set():
            if self._socket.poll(round(1000 * POLL_SECONDS)):
                peer, *frames = self._socket.recv_multipart()
                self._socket.send_multipart([peer, *self.answer(frames)])

    def close(self) -> None:
        """Let go of the address. The exchange stays open."""
        self._socket.close()
        self._context.term()

    def answer(self, frames: Sequence[bytes]) -> list[bytes]:
        """The answer to one message; an error is an answer too."""
        number: Any = None
        try:
            message = unpack(frames, self._limits)
            client, number, call = _request(message)
            known = self._answers.get(client)
            if known is not None and known[0] == number:
                self.counts["repeated"] += 1
                return known[1]
            arguments = message.read_list(call.kinds, call.name, [one.name for one in call.parameters])
        except WireError as error:
            return self._refuse(number, error)
        self.counts[call.name] += 1
        try:
            reply = pack({"id": number}, self._ask(call, arguments))
        except Exception as error:
            reply = self._refuse(number, error)
        self._remember(client, number, reply)
        return reply

    def _ask(self, call: Call, arguments: Sequence[Any]) -> Any:
        member = getattr(self._exchange, call.name)
        return member if call.is_property else member(*arguments)

    def _refuse(self, number: Any, error: Exception) -> list[bytes]:
        self.counts["error"] += 1
        log.warning("exchange: request %s refused: %s: %s", number, type(error).__name__, error)
        return pack({"id": number, "error": type(error).__name__, "message": str(error)})

    def _remember(self, client: str, number: int, reply: list[bytes]) -> None:
        self._answers[client] = (number, reply)
        self._answers.move_to_end(client)
        if len(self._answers) > CLIENTS:
            self._answers.popitem(last=False)


def _request(message: Frames) -> tuple[str, int, Call]:
    client, number, name = (message.header.get(key) for key in ("client", "id", "call"))
    if not isinstance(client, str) or not isinstance(number, int):
        raise WireError("a request needs a client and an id")
    call = calls().get(name) if isinstance(name, str) else None
    if call is None:
        raise WireError(f"no call {name!r}; there are {', '.join(calls())}")
    return client, number, call
