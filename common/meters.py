"""Where work tells what it counts and times, by the names of `deploy/observability/definitions.py`, whoever listens.

`deploy/observability/exporter.py` exports it to Prometheus. Imports nothing but the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Meters(Protocol):
    """What is told. `name` is a metric's, `labels` are its own."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """A counter rises by `amount`, >= 0."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """A histogram takes in a value."""
        ...


class NullMeters:
    """`Meters` that nobody reads."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """See `Meters`."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """See `Meters`."""


NULL_METERS = NullMeters()


class TimedIterator(Iterator[Item]):
    """Goes through `items`; `seconds` is the time that it has waited for them."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __next__(self) -> Item:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - began
