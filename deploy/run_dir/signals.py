"""Graceful stop on Ctrl-C, SIGTERM, or SIGHUP (the terminal is closed); a second signal ends the process at once.

A signal that was ignored at the start stays ignored: `nohup` ignores SIGHUP.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = "press Ctrl-C again to stop now"


@contextmanager
def stop_on_signals(message: str = f"finishing the current unit of work; {AGAIN}") -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True once the process has received one of `STOPS`.

    The first signal prints `message` on stderr. A second one raises `KeyboardInterrupt`, so that the end can be
    recorded.
    """
    asked: list[int] = []
    terminals = [number for number in (1, 2) if os.isatty(number)]  # a closed one is none any more
    before = {number: signal.getsignal(number) for number in STOPS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)
        for one in before:
            signal.signal(one, signal.default_int_handler)
        if number == signal.SIGHUP:
            _to_nowhere(terminals)
        print(message, file=sys.stderr)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        restore()


def _to_nowhere(terminals: Sequence[int]) -> None:
    """Lets the files that led to a closed terminal lead nowhere: writing to it fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
