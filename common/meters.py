"""Interface to report metrics. Metric names and labels are defined in `deploy/observability/definitions.py`.

`deploy/observability/exporter.py` implements it for Prometheus. This module imports only the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Meters(Protocol):
    """Receives measurements. `name` and `labels` must be those of a defined metric."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Increase a counter by `amount` >= 0."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        ...


class NullMeters:
    """`Meters` that discard everything."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """See `Meters`."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """See `Meters`."""


NULL_METERS = NullMeters()


class TimedIterator(Iterator[Item]):
    """Iterates over `items` and measures how long it waited for them (`seconds`)."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __next__(self) -> Item:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - began
