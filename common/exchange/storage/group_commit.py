"""Group commit: serializes the calls of many threads, and commits the calls that wait together in one transaction.

```
thread A  ──call──┐                       ┌─ lock ── run A, run B, run C ─────────── commit (one fsync) ─┐
thread B  ──call──┼──> queue, in order ───┤                                                              ├──> results
thread C  ──call──┘                       └─ the thread that gets the lock runs all queued calls ────────┘
```

A call returns only when it is durable. If a shared commit fails, the whole batch is rolled back, and each call runs
again in its own commit, so that an error reaches only the caller that caused it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from common.exchange.storage.ledger import Ledger

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class CommitRequest:
    """A queued call. `then` runs after its commit, before the next commit and before the caller gets the result."""

    call: Callable[[], Any]
    then: Callable[[], object]
    answer: Future[Any] = field(default_factory=Future)


class CommitQueue:
    """Runs calls on a ledger one at a time, holding `lock`. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.lock = Lock()
        self._ledger = ledger
        self._queue: deque[CommitRequest] = deque()

    def run(self, call: Callable[[], Answer], then: Callable[[], object] = lambda: None) -> Answer:
        """Run `call`, commit, run `then`; return the result of `call` or raise its error.

        `call` must not use the queue itself.
        """
        request = CommitRequest(call, then)
        self._queue.append(request)
        with self.lock:
            if not request.answer.done():  # otherwise the previous lock holder already ran it
                self._run_queued(request)
        self._ledger.clear()
        return request.answer.result()

    def _run_queued(self, own: CommitRequest) -> None:
        """Run all queued calls. If this thread is interrupted, the calls of the others return to the queue."""
        requests = [self._queue.popleft() for _ in range(len(self._queue))]
        try:
            self._run_and_answer(requests)
        finally:
            self._queue.extendleft(one for one in reversed(requests) if one is not own and not one.answer.done())

    def _run_and_answer(self, requests: Sequence[CommitRequest]) -> None:
        try:
            done = self._commit(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].answer.set_exception(error)
            else:
                for request in requests:
                    self._run_and_answer([request])
            return
        for request, value, error in done:
            failed = error or _outcome(request.then)[1]
            request.answer.set_exception(failed) if failed else request.answer.set_result(value)

    def _commit(self, requests: Sequence[CommitRequest]) -> list[tuple[CommitRequest, Any, Exception | None]]:
        """Run the calls in one commit. Returns each request with its result or its error."""
        done: list[tuple[CommitRequest, Any, Exception | None]] = []
        with self._ledger.batch():
            for request in requests:
                value, error = _outcome(request.call)
                if error is not None and not self._ledger.in_batch:
                    raise error  # SQLite rolled back the whole batch
                done.append((request, value, error))
        return done


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except Exception as error:
        return None, error
