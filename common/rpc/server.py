"""The answering side of `common/rpc/client.py`: one thread at the socket, others that work.

```
ROUTER ──> front thread: whose request, asked before? ──> a queue, small ones first ──> threads that call the target
       <── the last answer of every client, kept      <── answers, as they are done ──
```

The front thread alone holds the socket. The requests of one client are worked on one after the other, in the order of
their arrival; those of several clients at once where the service has more than one thread. Small requests (leases,
heartbeats) do not wait behind those that bring many bytes.

A client that got no answer asks again under the same id, and gets the same answer: the last one of every client is
kept, a request that is still in work is not taken up again, and an older id is refused. So a call whose answer was lost
on the way is not made twice. Kept are the answers of the `CLIENTS` that asked last, as far as they fit into
`KEPT_BYTES`; who repeats a request after that has it made again, which a lease allows: the one nobody works on runs
out.

Nothing that a client sends ends the service: it is refused in one line, of which one a second is logged. What waits is
bounded: beyond `QUEUED` requests a client is refused, beyond `WAITING` in all or `WAITING_BYTES` the socket is not
read, so that the rest waits in the connections. Requests wait as they came, and large headers are worked on one by one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from queue import PriorityQueue
from threading import Event, Lock, Thread
from typing import Any, Self

import zmq

from common.errors import ConfigError
from common.rpc.client import Call, calls
from common.rpc.codec import LIMITS, Limits, WireError, pack, unpack
from common.rpc.curve import CurveAuthenticator, ServerKeys

log = logging.getLogger(__name__)

LOOPBACK = "tcp://127.0.0.1:*"
POLL_SECONDS = 0.02  # how long a stop may go unnoticed
CLIENTS, KEPT_BYTES = 1024, 256 << 20  # last answers kept, and their size in all; the very last one always is
QUEUED = 64  # requests of a client under way; messages that wait in one connection, each way
WAITING, WAITING_BYTES = 1024, 256 << 20  # requests under way in all, and their size, but for the last one
FRAME = 1024  # bytes that one frame takes besides its own
SMALL = 1 << 16  # bytes of a request that goes first
WORDS = 1000  # characters of an error that travel


@dataclass(slots=True)
class Request:
    """One request that is in work, or waits for its client's earlier ones."""

    peer: bytes  # the connection that the answer goes to: the last one it was asked over
    client: str
    number: int
    call: Call
    frames: Sequence[bytes]  # a header that was read may take sixty times its room
    is_made: bool = False  # its arguments were sound

    @property
    def is_large(self) -> bool:
        """Whether it waits behind small ones."""
        return size(self.frames) > SMALL

    @property
    def room(self) -> int:
        """Bytes that it takes while it waits."""
        return size(self.frames) + FRAME * len(self.frames)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error's name and words, without what it holds on to."""

    name: str
    words: str  # printable, at most `WORDS` characters

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What is told of an error."""
        words = f"{error!s:.{WORDS}}"
        return cls(type(error).__name__, "".join(letter if letter.isprintable() else "?" for letter in words))


class Service:
    """Answers for `target` at `address` until told to stop. Bound at once: `.address` is where clients connect.

    With `threads` > 1 the target is called from several threads at once and must be made for that. Off loopback it
    needs `keys`, or it is a `ConfigError` (`common/rpc/curve.py`). `counts` are requests by call, under ``error`` those
    that were refused, under ``repeated`` those that were asked again.
    """

    def __init__(
        self,
        interface: type,
        target: Any,
        address: str = LOOPBACK,
        limits: Limits = LIMITS,
        keys: ServerKeys | None = None,
        threads: int = 1,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._calls, self._target, self._limits, self._threads = calls(interface), target, limits, threads
        self._answers: OrderedDict[str, tuple[int, list[bytes]]] = OrderedDict()
        self._kept, self._log = 0, RateLimitedLogger()
        self._waiting: dict[str, deque[Request]] = {}  # by client; the first of each is in work
        self._under_way, self._bytes = 0, 0  # requests in `_waiting`, and their size
        self._work: PriorityQueue[tuple[bool, int, Request | None]] = PriorityQueue()  # large?, turn; None: the end
        self._turn, self._dear = count(), Lock()
        self._done: deque[tuple[Request, list[bytes] | Refusal]] = deque()
        self._context = zmq.Context()
        self._door, self._bell = CurveAuthenticator(self._context, keys), WakeupSocket(self._context)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.blob)  # a larger frame closes its connection unread
        self._socket.setsockopt(zmq.RCVHWM, QUEUED)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED)
        try:
            self._door.bind(self._socket, address)
        except ConfigError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise OSError(f"{interface.__name__}: cannot listen at {address}: {error}") from None
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def serve(self, stop: Event) -> None:
        """Answer until `stop` is set. What is in work then is finished; what waits is not begun."""
        poller = zmq.Poller()
        poller.register(self._bell.heard, zmq.POLLIN)
        workers = [Thread(target=self._labour, args=(stop,), name="service", daemon=True) for _ in range(self._threads)]
        for worker in workers:
            worker.start()
        try:
            while not stop.is_set():
                poller.register(self._socket, zmq.POLLIN if self._has_room() else 0)
                ready = dict(poller.poll(round(1000 * POLL_SECONDS)))
                if self._bell.heard in ready:
                    self._bell.silence()
                    self._deliver()
                if self._socket in ready:
                    self._receive()
        finally:
            for _ in workers:
                self._work.put((False, -1, None))
            for worker in workers:
                worker.join()
            self._deliver()

    def close(self) -> None:
        """Let go of the address. The target stays as it is."""
        self._socket.close()
        self._bell.close()
        self._door.close()
        self._context.term()

    # The front thread.

    def _has_room(self) -> bool:
        return self._under_way < WAITING and self._bytes < WAITING_BYTES

    def _receive(self) -> None:
        """Take up a message, or answer it at once: with what was answered before, or with what is wrong with it."""
        peer, *rest = self._socket.recv_multipart(copy=False)
        frames: list[Any] = [frame.buffer for frame in rest]
        number = None
        try:
            client, number, name = self._look(frames)
            self._sort(Request(peer.bytes, client, number, self._call(name), frames))
        except Exception as error:  # a WireError; but whatever nonsense brings about must not end the thread
            self._send(peer.bytes, self._refuse(number, Refusal.of(error)))

    def _look(self, frames: Sequence[bytes]) -> tuple[str, int, Any]:
        """Who asks, the request's number, and the name of the call."""
        header = unpack(frames, self._limits).header
        client, number = header.get("client"), header.get("id")
        if not isinstance(client, str) or len(client) > 64 or type(number) is not int:
            raise WireError("a request needs a client and an id")
        return client, number, header.get("call")

    def _call(self, name: Any) -> Call:
        call = self._calls.get(name) if isinstance(name, str) else None
        if call is None:
            shown = f"{name!r:.60}" if isinstance(name, str) else "without a name"
            raise WireError(f"no call {shown}; there are {', '.join(self._calls)}")
        return call

    def _sort(self, request: Request) -> None:
        """Answer a request that was answered before; take up a new one."""
        client, number = request.client, request.number
        last, answer = self._answers.get(client, (None, []))
        waiting = self._waiting.get(client, deque())
        if number == last:
            self.counts["repeated"] += 1
            self._send(request.peer, answer)
            return
        for one in waiting:
            if one.number == number:
                if one.peer == request.peer:  # whoever asks again does so over a fresh connection
                    raise WireError(f"request {number} is under way already")
                self.counts["repeated"] += 1
                one.peer = request.peer
                return
        newest = max((one.number for one in waiting if not one.call.repeatable), default=last)
        if newest is not None and number < newest:
            raise WireError(f"request {number} is older than the last one, {newest}")
        if len(waiting) >= QUEUED:
            raise WireError(f"{QUEUED} requests of this client are under way; more are not taken")
        self._take_in(request)

    def _take_in(self, request: Request) -> None:
        waiting = self._waiting.setdefault(request.client, deque())
        waiting.append(request)
        self._under_way += 1
        self._bytes += request.room
        if len(waiting) == 1:
            self._take_up(request)

    def _take_up(self, request: Request) -> None:
        self._work.put((request.is_large, next(self._turn), request))

    def _deliver(self) -> None:
        """Send what is done, and take up what waited for it."""
        while self._done:
            request, reply = self._done.popleft()
            if isinstance(reply, Refusal):
                reply = self._refuse(request.number, reply)
            if request.is_made:  # else the call was not made, and may be asked for again
                self.counts[request.call.name] += 1
                if not request.call.repeatable:
                    self._remember(request.client, request.number, reply)
            self._send(request.peer, reply)
            self._let_go(request)

    def _let_go(self, request: Request) -> None:
        waiting = self._waiting[request.client]
        waiting.popleft()
        self._under_way -= 1
        self._bytes -= request.room
        if waiting:
            self._take_up(waiting[0])
        else:
            del self._waiting[request.client]

    def _send(self, peer: bytes, reply: Sequence[bytes]) -> None:
        self._socket.send_multipart([peer, *reply], copy=False)

    def _refuse(self, number: int | None, why: Refusal) -> list[bytes]:
        self.counts["error"] += 1
        self._log.warn(f"request {number} refused: {why.name}: {why.words}")
        return pack({"id": number, "error": why.name, "message": why.words})

    def _remember(self, client: str, number: int, reply: list[bytes]) -> None:
        _, old = self._answers.pop(client, (0, []))
        self._answers[client] = (number, reply)
        self._kept += size(reply) - size(old)
        while len(self._answers) > CLIENTS or (self._kept > KEPT_BYTES and len(self._answers) > 1):
            _, (_, old) = self._answers.popitem(last=False)
            self._kept -= size(old)

    # The threads that work.

    def _labour(self, stop: Event) -> None:
        """Call after call until told to stop."""
        while self._make_next(stop):
            pass

    def _make_next(self, stop: Event) -> bool:
        """One call, its answer handed to the front thread; nothing of it is held afterwards."""
        request = self._work.get()[2]
        if request is None or stop.is_set():
            return False
        self._done.append((request, self._reply(request)))
        self._bell.ring()
        return True

    def _reply(self, request: Request) -> list[bytes] | Refusal:
        call, names = request.call, [one.name for one in request.call.parameters]
        try:
            with self._dear if len(request.frames[0]) > SMALL else nullcontext():
                arguments = unpack(request.frames, self._limits).read_list(call.kinds, call.name, names)
                request.is_made = True
                return pack({"id": request.number}, self._ask(call, arguments))
        except Exception as error:
            return Refusal.of(error)

    def _ask(self, call: Call, arguments: Sequence[Any]) -> Any:
        member = getattr(self._target, call.name)
        return member if call.is_property else member(*arguments)


def size(frames: Sequence[bytes]) -> int:
    """Bytes of all frames."""
    return sum(map(len, frames))


class WakeupSocket:
    """Wakes a thread that polls sockets: any thread may `ring`, the one that polls `heard` answers with `silence`."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.heard, self._rope, self._lock = context.socket(zmq.PULL), context.socket(zmq.PUSH), Lock()
        address = f"inproc://{id(self)}"
        self.heard.bind(address)
        self._rope.connect(address)

    def ring(self) -> None:
        """Make `heard` readable."""
        with self._lock:
            self._rope.send(b"")

    def silence(self) -> None:
        """Take back all rings until now."""
        while self.heard.poll(0):
            self.heard.recv()

    def close(self) -> None:
        """Nobody rings any more."""
        self._rope.close(0)
        self.heard.close(0)


class RateLimitedLogger:
    """Warnings, at most one a second; the next one says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next, self._left_out = clock, 0.0, 0

    def warn(self, line: str) -> None:
        """Log `line`, or count it."""
        if self._clock() < self._next:
            self._left_out += 1
            return
        log.warning("%s%s", line, f" (and {self._left_out} more before it)" if self._left_out else "")
        self._next, self._left_out = self._clock() + 1.0, 0


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """``with serving(service):`` it answers on a thread of its own."""
    stop = Event()
    thread = Thread(target=service.serve, args=(stop,), name="service", daemon=True)
    thread.start()
    try:
        yield service
    finally:
        stop.set()
        thread.join()
        service.close()
