"""Messages between driver, hub and workers of a run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.messages import WorkerKey
from deploy.run_dir.progress import Status

RENDEZVOUS_PREFIX = ".rendezvous-"  # of the files in the run folder through which the learner's ranks find each other


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of the hub's services, the key to connect with, and the run folder on the hub's node.

    Hub -> driver -> workers.
    """

    exchange: str
    journal: str
    weights: str
    folder: Path
    key: WorkerKey | None = field(default=None, repr=False)  # None on loopback


@dataclass(frozen=True, slots=True)
class HubReady:
    """The hub has opened the run folder and serves it. Hub -> driver."""

    addresses: Addresses
    training: bool  # False when only the comparison is left


@dataclass(frozen=True, slots=True)
class HubStatus:
    """The status of the run, and the messages since the last call. Hub -> driver."""

    status: Status | None
    lines: list[str]
    samplers: int  # external samplers with a recent heartbeat (`deploy/runtime/external_workers.py`)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one start of a run ended. `result` is the content of result.json, None after a stop."""

    step: int
    result: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the run has finished, comparison included."""
        return self.result is not None
