"""Sends the log records of a process to the hub, which writes them to files.

```
log.warning ──> emit: a bounded queue ──> thread: batches ──> send ──> hub
                 full: counted, reported       no answer: kept, retried every `RETRY_SECONDS`
```
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from threading import Condition, Event, Thread, current_thread

from common.messages import LogEntry
from deploy.logs.records import entry_of
from deploy.logs.redaction import Redactor

CAPACITY = 1_000  # records in the queue; further ones are dropped
BATCH = 100  # records per message
GATHER_SECONDS = 0.2  # from the first record of a batch until it is sent
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 3.0  # timeout for sending the last records
SENDER = "logs"  # name of the thread

Send = Callable[[Sequence[LogEntry]], object]


class ForwardingHandler(logging.Handler):
    """Queues records, and sends them after `start`. Never blocks its callers and never raises.

    It can be stopped and started again: unsent records stay queued for the next hub.
    """

    def __init__(self, redact: Redactor | None = None, capacity: int = CAPACITY) -> None:
        super().__init__()
        self.redact = redact or Redactor()
        self._capacity = capacity
        self._waiting: deque[LogEntry] = deque()
        self._dropped = 0
        self._changed = Condition()
        self._thread, self._stop = Thread(), Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a record, or counts it as dropped."""
        if current_thread().name == SENDER:
            return  # records about sending would cause further records, without end
        try:
            entry = entry_of(record)
            self._put(LogEntry(entry.created, entry.level, entry.logger, self.redact(entry.message)))
        except Exception:
            self.handleError(record)

    def _put(self, entry: LogEntry) -> None:
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._dropped += 1
                return
            self._waiting.append(entry)
            self._changed.notify_all()

    def handleError(self, record: logging.LogRecord) -> None:
        """Counts a record that cannot be formatted as dropped."""
        with self._changed:
            self._dropped += 1

    def start(self, connect: Callable[[], AbstractContextManager[Send]]) -> None:
        """Starts sending queued and new records. `connect` is entered and left on the sending thread."""
        self._stop = Event()
        self._thread = Thread(target=self._run, args=(connect, self._stop), name=SENDER, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sends the queued records, for at most `CLOSE_SECONDS`, and stops. Does nothing before `start`."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)
        self._thread = Thread()  # a thread still waiting for an answer no longer removes records (`_forget`)

    def take(self) -> list[LogEntry]:
        """Removes and returns the unsent records. Call after `stop`."""
        with self._changed:
            left = self._batch(len(self._waiting))
            self._waiting.clear()
            self._dropped = 0
        return left

    def _run(self, connect: Callable[[], AbstractContextManager[Send]], stop: Event) -> None:
        with suppress(Exception), connect() as send:  # without a connection, records stay queued until the next `start`
            while self._await_records(stop):
                with self._changed:
                    batch, dropped = self._batch(BATCH), self._dropped
                if _is_delivered(send, batch):
                    self._forget(batch, dropped)
                elif stop.is_set():
                    return
                else:
                    stop.wait(RETRY_SECONDS)

    def _await_records(self, stop: Event) -> bool:
        """Waits for a record, then briefly for others to fill the batch. False after `stop` with an empty queue."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._dropped or stop.is_set())
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH or stop.is_set(), GATHER_SECONDS)
            return bool(self._waiting or self._dropped)

    def _batch(self, size: int) -> list[LogEntry]:
        batch = [*islice(self._waiting, size)]
        if self._dropped:
            message = f"{self._dropped} log records were dropped: the queue was full"
            batch.append(LogEntry(time.time(), logging.WARNING, __name__, message))
        return batch

    def _forget(self, batch: Sequence[LogEntry], dropped: int) -> None:
        with self._changed:
            if current_thread() is self._thread:
                for _ in range(len(batch) - bool(dropped)):
                    self._waiting.popleft()
                self._dropped -= dropped


def _is_delivered(send: Send, batch: Sequence[LogEntry]) -> bool:
    """Whether a batch needs no retry: the hub stored it, or rejected it permanently (`ValueError`)."""
    try:
        send(batch)
    except ValueError:
        return True
    except Exception:  # logging must never end the worker
        return False
    return True
