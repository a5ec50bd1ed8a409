"""The server side of `common/rpc/client.py`: one I/O thread that owns the socket, and worker threads that run calls.

```
ROUTER ──> I/O thread: new request or retry? ──> priority queue, small requests first ──> worker threads
       <── reply cache, last reply per client <── replies, in order of completion     <──
```

Order: requests of one client run one at a time, in the order they arrive. With several threads, requests of different
clients run in parallel. Small requests (leases, heartbeats) overtake those that carry many bytes.

Requests are idempotent per client. If a reply is lost, the client retries with the same id; the server returns the
cached reply (last one per client, LRU over `CLIENTS` clients, at most `KEPT_BYTES`) instead of running the call twice.
A retry of a request that is still running waits for its result, and an id older than the client's last one is
rejected. A retry that arrives after its reply was evicted runs again; that is safe only because an unused lease
expires.

A long poll (`client.long_poll`) holds no thread: it is parked until its result changes, for at most `HOLD_SECONDS`.

Malformed requests never stop the server: each gets a one-line error reply, logged at most once a second. Memory is
bounded: a client with `MAX_QUEUED` open requests gets errors for further ones, and beyond `MAX_PENDING` requests or
`MAX_PENDING_BYTES` in total the socket is not read, so that ZeroMQ applies backpressure. Requests wait undecoded, and
requests with a large header run one at a time.
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
from common.rpc.codec import LIMITS, Limits, WireError, pack, unpack
from common.rpc.curve import CurveAuthenticator, ServerKeys
from common.rpc.interface import Call, calls

log = logging.getLogger(__name__)

LOOPBACK = "tcp://127.0.0.1:*"
POLL_SECONDS = 0.02  # upper bound on the delay until `stop`, or the new result of a parked request, is noticed
HOLD_SECONDS = 1.0  # how long a long poll is parked; a worker that was told to stop notices it after that time
CLIENTS, KEPT_BYTES = 1024, 256 << 20  # reply cache: clients, and bytes in total; the newest reply is always kept
MAX_QUEUED = 64  # open requests per client; also the ZeroMQ high-water mark per connection, each way
MAX_PENDING, MAX_PENDING_BYTES = 1024, 256 << 20  # open requests of all clients; the last one may exceed the bytes
FRAME_OVERHEAD = 1024  # bytes of memory per frame, besides its content
SMALL_REQUEST = 1 << 16  # bytes; up to this size a request overtakes larger ones
MAX_ERROR_CHARS = 1000  # longer error messages are cut


@dataclass(slots=True)
class Request:
    """A request that is running, or queued behind its client's earlier ones."""

    peer: bytes  # the connection to reply to: the one of the latest retry
    client: str
    number: int
    call: Call
    frames: Sequence[bytes]  # undecoded: a decoded header can take sixty times the memory
    has_run: bool = False  # the arguments were valid, so the call was made
    deadline: float | None = None  # of a parked long poll, by the monotonic clock

    @property
    def is_large(self) -> bool:
        """Whether small requests overtake it."""
        return size(self.frames) > SMALL_REQUEST

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes while it waits."""
        return size(self.frames) + FRAME_OVERHEAD * len(self.frames)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error's name and message. Unlike the exception, it keeps no traceback and no frames alive."""

    name: str
    message: str  # printable, at most `MAX_ERROR_CHARS` characters

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What the client is told about `error`."""
        message = f"{error!s:.{MAX_ERROR_CHARS}}"
        printable = "".join(letter if letter.isprintable() else "?" for letter in message)
        return cls(type(error).__name__, printable)


@dataclass(frozen=True, slots=True)
class Held:
    """A long poll without a new result yet."""

    name: str
    arguments: tuple[Any, ...]


class Service:
    """Serves the methods of `target` at `address`. The constructor binds the socket; `serve` answers requests.

    `.address` is the address that clients connect to. With `threads` > 1 the target must be thread-safe. Each of the
    `io_threads` encrypts and sends for some of the clients. `.counts` counts requests by call; ``error`` counts error
    replies and ``repeated`` counts retries.

    Raises:
        ConfigError: `address` is not loopback and there are no `keys` (`common/rpc/curve.py`).
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        interface: type,
        target: Any,
        address: str = LOOPBACK,
        limits: Limits = LIMITS,
        keys: ServerKeys | None = None,
        threads: int = 1,
        io_threads: int = 1,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._calls, self._target, self._limits, self._threads = calls(interface), target, limits, threads
        self._answers: OrderedDict[str, tuple[int, list[bytes]]] = OrderedDict()  # reply cache, least recent first
        self._answers_bytes, self._log = 0, RateLimitedLogger()
        self._pending: dict[str, deque[Request]] = {}  # by client; the first of each is running
        self._pending_count, self._pending_bytes = 0, 0
        self._queue: PriorityQueue[tuple[bool, int, Request | None]] = PriorityQueue()  # large?, sequence; None: stop
        self._sequence, self._large_header_lock = count(), Lock()
        self._done: deque[tuple[Request, list[bytes] | ErrorReply | Held]] = deque()
        self._parked: dict[Held, deque[Request]] = {}  # long polls, by call and arguments
        self._context = zmq.Context(io_threads)
        self._authenticator, self._wakeup = CurveAuthenticator(self._context, keys), WakeupSocket(self._context)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)  # milliseconds, for the last replies
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.blob)  # ZeroMQ closes a connection that sends a larger frame
        self._socket.setsockopt(zmq.RCVHWM, MAX_QUEUED)
        self._socket.setsockopt(zmq.SNDHWM, MAX_QUEUED)
        try:
            self._authenticator.bind(self._socket, address)
        except ConfigError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise OSError(f"{interface.__name__}: cannot listen at {address}: {error}") from None
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def serve(self, stop: Event) -> None:
        """Answer requests until `stop` is set. Running calls are finished; queued requests are dropped."""
        poller = zmq.Poller()
        poller.register(self._wakeup.reader, zmq.POLLIN)
        workers = [
            Thread(target=self._work_until, args=(stop,), name="service", daemon=True) for _ in range(self._threads)
        ]
        for worker in workers:
            worker.start()
        try:
            while not stop.is_set():
                poller.register(self._socket, zmq.POLLIN if self._has_capacity() else 0)
                ready = dict(poller.poll(round(1000 * POLL_SECONDS)))
                if self._wakeup.reader in ready:
                    self._wakeup.drain()
                    self._send_replies()
                self._answer_parked(time.monotonic())
                if self._socket in ready:
                    self._receive()
        finally:
            for _ in workers:
                self._queue.put((False, -1, None))
            for worker in workers:
                worker.join()
            self._send_replies()
            self._answer_parked(time.monotonic() + HOLD_SECONDS)  # their clients would ask again for minutes

    def close(self) -> None:
        """Unbind the socket. The target stays open."""
        self._socket.close()
        self._wakeup.close()
        self._authenticator.close()
        self._context.term()

    # I/O thread.

    def _has_capacity(self) -> bool:
        return self._pending_count < MAX_PENDING and self._pending_bytes < MAX_PENDING_BYTES

    def _receive(self) -> None:
        """Read one message. Queue it, or answer at once: from the reply cache, or with an error."""
        peer, *rest = self._socket.recv_multipart(copy=False)
        frames: list[Any] = [frame.buffer for frame in rest]
        number = None
        try:
            client, number, name = self._parse(frames)
            self._dispatch(Request(peer.bytes, client, number, self._call(name), frames))
        except Exception as error:  # usually a WireError, but malformed input must never kill this thread
            self._send(peer.bytes, self._reject(number, ErrorReply.of(error)))

    def _parse(self, frames: Sequence[bytes]) -> tuple[str, int, Any]:
        """Returns: client id, request number, and the name of the call (unchecked)."""
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

    def _dispatch(self, request: Request) -> None:
        """Tell retries from new requests. Answer or reroute a retry; queue a new request."""
        client, number = request.client, request.number
        last, answer = self._answers.get(client, (None, []))
        pending = self._pending.get(client, deque())
        if number == last:
            self.counts["repeated"] += 1
            self._send(request.peer, answer)
            return
        for one in pending:
            if one.number == number:
                if one.peer == request.peer:  # a real retry always uses a new connection
                    raise WireError(f"request {number} is already running")
                self.counts["repeated"] += 1
                one.peer = request.peer
                return
        newest = max((one.number for one in pending if not one.call.repeatable), default=last)
        if newest is not None and number < newest:
            raise WireError(f"request {number} is older than the last one, {newest}")
        if len(pending) >= MAX_QUEUED:
            raise WireError(f"this client already has {MAX_QUEUED} open requests, the maximum")
        self._admit(request)

    def _admit(self, request: Request) -> None:
        pending = self._pending.setdefault(request.client, deque())
        pending.append(request)
        self._pending_count += 1
        self._pending_bytes += request.memory
        if len(pending) == 1:
            self._schedule(request)

    def _schedule(self, request: Request) -> None:
        self._queue.put((request.is_large, next(self._sequence), request))

    def _send_replies(self) -> None:
        """Send all finished replies, and schedule the next request of each client."""
        while self._done:
            request, reply = self._done.popleft()
            if isinstance(reply, Held):
                self._park(request, reply)
                continue
            if isinstance(reply, ErrorReply):
                reply = self._reject(request.number, reply)
            if request.has_run:  # otherwise the client may retry with valid arguments under the same id
                self.counts[request.call.name] += 1
                if not request.call.repeatable:
                    self._cache_reply(request.client, request.number, reply)
            self._send(request.peer, reply)
            self._finish(request)

    def _park(self, request: Request, held: Held) -> None:
        """Hold a long poll back. Meanwhile it does not count as pending, so that many of them block nobody."""
        request.deadline = request.deadline or time.monotonic() + HOLD_SECONDS
        self._parked.setdefault(held, deque()).append(request)
        self._pending_count -= 1
        self._pending_bytes -= request.memory

    def _answer_parked(self, now: float) -> None:
        """Answer the long polls that have a new result, or whose deadline is not after `now`."""
        for held, requests in list(self._parked.items()):
            result = getattr(self._target, held.name)(*held.arguments)
            changed = result != held.arguments[-1]
            while requests and (changed or (requests[0].deadline or 0.0) <= now):
                request = requests.popleft()
                self._pending_count += 1
                self._pending_bytes += request.memory
                self._done.append((request, pack({"id": request.number}, result)))
            if not requests:
                del self._parked[held]
        self._send_replies()

    def _finish(self, request: Request) -> None:
        pending = self._pending[request.client]
        pending.popleft()
        self._pending_count -= 1
        self._pending_bytes -= request.memory
        if pending:
            self._schedule(pending[0])
        else:
            del self._pending[request.client]

    def _send(self, peer: bytes, reply: Sequence[bytes]) -> None:
        self._socket.send_multipart([peer, *reply], copy=False)

    def _reject(self, number: int | None, error: ErrorReply) -> list[bytes]:
        self.counts["error"] += 1
        self._log.warn(f"request {number} refused: {error.name}: {error.message}")
        return pack({"id": number, "error": error.name, "message": error.message})

    def _cache_reply(self, client: str, number: int, reply: list[bytes]) -> None:
        _, old = self._answers.pop(client, (0, []))
        self._answers[client] = (number, reply)
        self._answers_bytes += size(reply) - size(old)
        while len(self._answers) > CLIENTS or (self._answers_bytes > KEPT_BYTES and len(self._answers) > 1):
            _, (_, old) = self._answers.popitem(last=False)
            self._answers_bytes -= size(old)

    # Worker threads.

    def _work_until(self, stop: Event) -> None:
        while self._run_next(stop):
            pass

    def _run_next(self, stop: Event) -> bool:
        """Run one call and pass its reply to the I/O thread. Returns False when told to stop.

        A method of its own, so that no local variable keeps the request alive while the thread waits for the next one.
        """
        request = self._queue.get()[2]
        if request is None or stop.is_set():
            return False
        self._done.append((request, self._run(request)))
        self._wakeup.wake()
        return True

    def _run(self, request: Request) -> list[bytes] | ErrorReply | Held:
        call, names = request.call, [one.name for one in request.call.parameters]
        try:
            with self._large_header_lock if len(request.frames[0]) > SMALL_REQUEST else nullcontext():
                arguments = unpack(request.frames, self._limits).read_list(call.kinds, call.name, names)
                request.has_run = True
                result = self._invoke(call, arguments)
                if call.long_poll and result == arguments[-1]:
                    return Held(call.name, tuple(arguments))
                return pack({"id": request.number}, result)
        except Exception as error:
            return ErrorReply.of(error)

    def _invoke(self, call: Call, arguments: Sequence[Any]) -> Any:
        member = getattr(self._target, call.name)
        return member if call.is_property else member(*arguments)


def size(frames: Sequence[bytes]) -> int:
    """Bytes of all frames."""
    return sum(map(len, frames))


class WakeupSocket:
    """Wakes a thread that polls sockets. Any thread may call `wake`; the polling thread polls `reader`, then drains."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.reader, self._writer, self._lock = context.socket(zmq.PULL), context.socket(zmq.PUSH), Lock()
        address = f"inproc://{id(self)}"
        self.reader.bind(address)
        self._writer.connect(address)

    def wake(self) -> None:
        """Make `reader` readable."""
        with self._lock:
            self._writer.send(b"")

    def drain(self) -> None:
        """Discard all wakeups until now."""
        while self.reader.poll(0):
            self.reader.recv()

    def close(self) -> None:
        """Close both ends; no thread may call `wake` any more."""
        self._writer.close(0)
        self.reader.close(0)


class RateLimitedLogger:
    """Logs at most one warning a second; the next one says how many were suppressed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next, self._suppressed = clock, 0.0, 0

    def warn(self, line: str) -> None:
        """Log `line`, or count it as suppressed."""
        if self._clock() < self._next:
            self._suppressed += 1
            return
        log.warning("%s%s", line, f" (and {self._suppressed} more before it)" if self._suppressed else "")
        self._next, self._suppressed = self._clock() + 1.0, 0


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """``with serving(service):`` runs the service on a background thread and closes it on exit."""
    stop = Event()
    thread = Thread(target=service.serve, args=(stop,), name="service", daemon=True)
    thread.start()
    try:
        yield service
    finally:
        stop.set()
        thread.join()
        service.close()
