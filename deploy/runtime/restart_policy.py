"""When a dead worker is started again, and when the run gives up. Pure: it is told what happened and what time it is.

A worker that died starts again after a pause that doubles with every death within the last hour (1, 2, 4 ... 60 s).
Whoever dies more often than allowed has a fault that starting again does not mend. A sampler is then left out, as long
as enough others are there; for every other role the run is over. Bad input (`ConfigError`), a disk that refuses
(`StorageError`) and memory that is too little for the first unit of work (`OutOfMemory`) end the run at once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from common.errors import RunFailed

WINDOW = 3600.0  # seconds a death is remembered
LONGEST_PAUSE = 60.0  # seconds


class GivenUp(RunFailed):
    """A worker died too often; says which, and of what it died last."""


@dataclass
class Supervisor:
    """Counts deaths by worker. `allowed` within an hour are mended; the first pause lasts `pause` seconds."""

    allowed: int
    pause: float = 1.0
    restarts: int = 0  # of all workers, since the start
    _deaths: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def died(self, worker: str, reason: str, now: float) -> float:
        """Note a death at second `now`; the second at which the worker starts again. `GivenUp` when it must not."""
        deaths = self._deaths[worker]
        while deaths and now - deaths[0] >= WINDOW:
            deaths.popleft()
        deaths.append(now)
        if len(deaths) > self.allowed:
            often = f"{worker} died {len(deaths)} times within an hour (cluster.restarts = {self.allowed})"
            raise GivenUp(f"{often}, at last of: {reason}")
        self.restarts += 1
        return now + min(self.pause * 2 ** (len(deaths) - 1), LONGEST_PAUSE)


class TooFew(RunFailed):
    """Fewer samplers than are asked for."""


@dataclass
class Quorum:
    """Watches over `least` samplers. Those to come are waited for `patience` seconds."""

    least: int  # cluster.min_samplers
    patience: float  # seconds; cluster.placement_seconds
    _since: float | None = None

    def check(self, up: int, coming: int, now: float) -> None:
        """`up` samplers work and `coming` may yet start, at second `now`. Raises `TooFew`."""
        if up >= self.least:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if up + coming < self.least:
            raise TooFew(f"{up + coming} samplers are left; cluster.min_samplers = {self.least}")
        if now - self._since > self.patience:
            raise TooFew(
                f"{up} samplers have come up within cluster.placement_seconds = {self.patience:g} s; "
                f"cluster.min_samplers = {self.least}"
            )
