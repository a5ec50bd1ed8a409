"""The rewarder's loop, whatever gives the scores: lease clips of any prompts, score them as one batch, submit."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import Event

from common.exchange.api import Exchange
from common.messages import Score, ScoreTask

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.02  # between two looks whether there are more clips for a batch


class ScoringLoop(ABC):
    """A stateless worker: whoever has the same rewards gives the same scores. Up to `batch` clips at a time."""

    def __init__(self, worker: str, batch: int) -> None:
        self.worker, self._batch = worker, batch

    @abstractmethod
    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """One `Score` per task, in order, with a value for every dimension (NaN: unreadable or not scorable)."""

    def work(self, exchange: Exchange) -> int:
        """Score what waits; how many clips, 0 when there are none now."""
        return self.finish(exchange, self.gather(exchange))

    def gather(
        self,
        exchange: Exchange,
        patience: float = 0.0,
        wait: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> list[ScoreTask]:
        """Clips for one batch: at once when it is full, else when `patience` seconds have passed since the first.

        `wait` is called with the seconds to wait between two looks; when it answers true nothing more is gathered.
        """
        tasks = list(exchange.lease_candidates(self.worker, self._batch))
        wait, ends = wait or Event().wait, clock() + patience
        while tasks and len(tasks) < self._batch and (left := ends - clock()) > 0:
            if wait(min(left, LOOK_SECONDS)):
                break
            tasks += exchange.lease_candidates(self.worker, self._batch - len(tasks))
        return tasks

    def finish(self, exchange: Exchange, tasks: Sequence[ScoreTask]) -> int:
        """Score what was gathered; how many clips that were."""
        if tasks:
            exchange.submit_scores(self.worker, self.score(tasks))
            log.debug("%d clips scored", len(tasks))
        return len(tasks)
