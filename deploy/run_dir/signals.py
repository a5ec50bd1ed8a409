"""Graceful stop on Ctrl-C or SIGTERM; a second signal ends the process immediately."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = "press Ctrl-C again to stop now"


@contextmanager
def stop_on_signals(message: str = f"finishing the current unit of work; {AGAIN}") -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True once the process has received SIGINT or SIGTERM.

    The first signal prints `message` on stderr and restores the previous handlers, so that a second one is not caught.
    """
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)
        print(message, file=sys.stderr)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        restore()
