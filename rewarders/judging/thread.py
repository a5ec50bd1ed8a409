"""Runs code of judges in one daemon thread of the process, the same for opening and asking them.

```
caller ── call(act) ──> judges' thread: act()      prints of act go to stderr; `sys.exit` becomes an error
   │                                               a forked child that gets here ends
   └── waits: a line after 60, 120, 240 ... s; `JudgeHangsError` after `seconds`
```

A thread cannot be ended from outside. One that hangs is left behind: it does not keep the process alive, and later
calls get a new thread. Judges may keep what belongs to a thread, such as an SQLite connection, between calls.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread
from typing import Any, Generic, TypeVar, cast

from rewarders.interface import JudgeBrokenError

log = logging.getLogger(__name__)

FIRST_SAID = 60.0  # seconds in one call before the first line; the next ones after twice as many

Answer = TypeVar("Answer")


class JudgeHangsError(JudgeBrokenError):
    """A judge did not return within `reward.judge_seconds`."""


class _Call(Generic[Answer]):
    """One call: what to do, and how it went."""

    def __init__(self, act: Callable[[], Answer]) -> None:
        self._act, self.done = act, Event()
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        process = os.getpid()
        try:
            with redirect_stdout(sys.stderr):  # stdout is for what a command was asked for
                self._answer = self._act()
        except BaseException as error:
            self._error = in_process(error)
        if os.getpid() != process:
            os._exit(1)  # a child of `os.fork` in the judge's code, which returned or raised here: it is no run
        self.done.set()

    def result(self) -> Answer:
        if self._error is not None:
            raise self._error
        return cast(Answer, self._answer)


def in_process(error: BaseException) -> Exception:
    """The error itself, or one that does not end the process for `sys.exit` and the like."""
    if isinstance(error, Exception):
        return error
    what = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else type(error).__name__
    return RuntimeError(f"it called {what}").with_traceback(error.__traceback__)


class JudgeThread:
    """A daemon thread that makes calls one after the other."""

    def __init__(self) -> None:
        self._lock, self._queue, self._thread = Lock(), SimpleQueue[Any](), cast("Thread | None", None)

    def call(self, what: str, act: Callable[[], Answer], seconds: float = math.inf) -> Answer:
        """Returns what `act` returns, or raises what it raises. Callers wait for each other.

        Raises `JudgeHangsError` after `seconds`, naming `what` is done: "judge red: scoring 4 clips".
        """
        if current_thread() is self._thread:
            return act()
        with self._lock:
            call = _Call(act)
            self._running().put(call)
            self._wait(call, what, seconds)
        return call.result()

    def _running(self) -> SimpleQueue[Any]:
        if self._thread is None:
            self._queue = SimpleQueue()
            self._thread = Thread(target=_serve, args=(self._queue,), name="judges", daemon=True)
            self._thread.start()
        return self._queue

    def _wait(self, call: _Call[Any], what: str, seconds: float) -> None:
        began, said = time.monotonic(), FIRST_SAID
        while not call.done.wait(min(said, seconds) - (time.monotonic() - began)):
            passed = time.monotonic() - began
            if passed >= seconds:
                self._thread = None
                raise JudgeHangsError(
                    f"{what} has not ended within reward.judge_seconds = {seconds:g}; the same command resumes the run"
                )
            if passed >= said:
                until = "" if math.isinf(seconds) else f"; after {seconds:g} s (reward.judge_seconds) the run ends"
                log.warning("%s takes %.0f s so far%s", what, passed, until)
                said *= 2


def _serve(queue: SimpleQueue[Any]) -> None:
    while True:
        call = queue.get()
        call.run()
        del call  # its clips


JUDGES = JudgeThread()
Call = Callable[[str, Callable[[], Any]], Any]  # `JudgeThread.call` with a bound
