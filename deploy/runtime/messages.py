"""What driver, hub and workers of a run say to each other. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.messages import WorkerKey
from deploy.run_dir.progress import Status

MEETING = ".meeting-"  # how files in the run folder begin that a learner's ranks meet at


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the hub's services listen, what lets in there, and where the run's folder is on the hub's node.

    Hub -> driver -> workers.
    """

    exchange: str
    journal: str
    weights: str
    notes: str
    folder: Path
    key: WorkerKey | None = field(default=None, repr=False)  # None on loopback


@dataclass(frozen=True, slots=True)
class HubReady:
    """A run folder is served. Hub -> driver."""

    addresses: Addresses
    training: bool  # False when only the comparison is left


@dataclass(frozen=True, slots=True)
class HubStatus:
    """What is new at the hub. Hub -> driver."""

    status: Status | None
    lines: list[str]
    samplers: int  # guests that sample (`deploy/runtime/external_workers.py`)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a start of a run ended: `result` is what result.json holds, None after a stop."""

    step: int
    result: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the run is at its end and compared."""
        return self.result is not None
