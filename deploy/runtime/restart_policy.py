"""When a crashed worker is restarted and when the run ends. Pure functions of events and times.

A crashed worker is restarted with exponential backoff over its crashes within the last hour (1, 2, 4 ... 60 s). After
more crashes than allowed, restarting is unlikely to help: a sampler is then abandoned as long as enough others remain,
while a crash of any other role ends the run. Bad input (`ConfigError`), a failing disk (`StorageError`) and too little
memory for the first unit of work (`OutOfMemory`) end the run at once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from common.errors import RunFailed

WINDOW = 3600.0  # seconds after which a crash no longer counts
LONGEST_PAUSE = 60.0  # seconds


class RestartLimitError(RunFailed):
    """A worker crashed too often. The message names it and its last error."""


@dataclass
class Supervisor:
    """Counts crashes per worker. Allows `allowed` restarts per hour; the first backoff is `pause` seconds."""

    allowed: int
    pause: float = 1.0
    restarts: int = 0  # restarts of all workers since the start
    _deaths: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def died(self, worker: str, reason: str, now: float) -> float:
        """Records a crash at time `now` (seconds). Returns the time of the restart.

        Raises `RestartLimitError` after more than `allowed` crashes within an hour.
        """
        deaths = self._deaths[worker]
        while deaths and now - deaths[0] >= WINDOW:
            deaths.popleft()
        deaths.append(now)
        if len(deaths) > self.allowed:
            often = f"{worker} died {len(deaths)} times within an hour (cluster.restarts = {self.allowed})"
            raise RestartLimitError(f"{often}; last error: {reason}")
        self.restarts += 1
        return now + min(self.pause * 2 ** (len(deaths) - 1), LONGEST_PAUSE)


class TooFewSamplersError(RunFailed):
    """There are fewer samplers than `cluster.min_samplers`."""


@dataclass
class Quorum:
    """Requires at least `least` running samplers, and waits `patience` seconds for those that are starting."""

    least: int  # cluster.min_samplers
    patience: float  # seconds; cluster.placement_seconds
    _since: float | None = None

    def check(self, up: int, coming: int, now: float) -> None:
        """Checks `up` running and `coming` starting samplers at time `now` (seconds). Raises `TooFewSamplersError`."""
        if up >= self.least:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if up + coming < self.least:
            raise TooFewSamplersError(f"{up + coming} samplers are left; cluster.min_samplers = {self.least}")
        if now - self._since > self.patience:
            raise TooFewSamplersError(
                f"{up} samplers have started within cluster.placement_seconds = {self.patience:g} s; "
                f"cluster.min_samplers = {self.least}"
            )
