"""Whose turn it is: calls of many threads become one order, and those that wait for each other share one commit.

```
thread A  ──call──┐                       ┌─ lock ── A's turn, B's turn, C's turn ── commit (one fsync) ─┐
thread B  ──call──┼──> queue, in order ───┤                                                              ├──> answers
thread C  ──call──┘                       └─ the first that gets the lock takes the turns of all ────────┘
```

A call returns when it is durable, and not before. Alone, a call is one turn and one commit. Where a shared commit
fails, nothing of it happened; then each call is made once more with a commit of its own, and knows how that one went.
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
    """A call that waits: `then` follows its commit, before the next commit and before the answer."""

    call: Callable[[], Any]
    then: Callable[[], object]
    answer: Future[Any] = field(default_factory=Future)


class CommitQueue:
    """Makes calls on a ledger one after the other. `lock` is held meanwhile."""

    def __init__(self, ledger: Ledger) -> None:
        self.lock = Lock()
        self._ledger = ledger
        self._queue: deque[CommitRequest] = deque()

    def take(self, call: Callable[[], Answer], then: Callable[[], object] = lambda: None) -> Answer:
        """What `call` returns or raises, once it is durable and `then` was called. It must not take a turn itself."""
        mine = CommitRequest(call, then)
        self._queue.append(mine)
        with self.lock:
            if not mine.answer.done():  # else it was taken along by who had the lock before
                self._take_all(mine)
        self._ledger.clear()
        return mine.answer.result()

    def _take_all(self, mine: CommitRequest) -> None:
        """All that wait. An interrupt of this thread is none of the others'."""
        turns = [self._queue.popleft() for _ in range(len(self._queue))]
        try:
            self._make(turns)
        finally:
            self._queue.extendleft(turn for turn in reversed(turns) if turn is not mine and not turn.answer.done())

    def _make(self, turns: Sequence[CommitRequest]) -> None:
        try:
            made = self._commit(turns)
        except Exception as error:
            if len(turns) == 1:
                turns[0].answer.set_exception(error)
            else:
                for turn in turns:
                    self._make([turn])
            return
        for turn, value, error in made:
            failed = error or _outcome(turn.then)[1]
            turn.answer.set_exception(failed) if failed else turn.answer.set_result(value)

    def _commit(self, turns: Sequence[CommitRequest]) -> list[tuple[CommitRequest, Any, Exception | None]]:
        """One batch of turns, each with its value or its error."""
        made: list[tuple[CommitRequest, Any, Exception | None]] = []
        with self._ledger.batch():
            for turn in turns:
                value, error = _outcome(turn.call)
                if error is not None and not self._ledger.in_batch:
                    raise error  # with it went all before it
                made.append((turn, value, error))
        return made


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except Exception as error:
        return None, error
