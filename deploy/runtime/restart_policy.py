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


class TooFewWorkersError(RunFailed):
    """There are fewer processes of a role than the run needs."""


@dataclass
class Quorum:
    """Requires at least `least` running processes of a role, and waits `patience` seconds for those that start."""

    least: int
    patience: float  # seconds; cluster.placement_seconds
    workers: str = "samplers"
    key: str = ""  # that sets `least`; empty: it is fixed
    _since: float | None = None

    def check(self, up: int, coming: int, now: float) -> None:
        """Checks `up` running and `coming` starting ones at time `now` (seconds). Raises `TooFewWorkersError`."""
        if up >= self.least:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        need = f"{self.key} = {self.least}" if self.key else f"{self.least} is needed"
        if up + coming < self.least:
            raise TooFewWorkersError(f"{up + coming} {self.workers} are left; {need}")
        if now - self._since > self.patience:
            raise TooFewWorkersError(
                f"{up} {self.workers} have started within cluster.placement_seconds = {self.patience:g} s; {need}"
            )
