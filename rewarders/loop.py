"""The rewarder's loop: lease clips of any prompts, score them as one batch, submit the scores."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import Event

from common.exchange.api import RewarderExchange
from common.messages import Score, ScoreTask

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02  # between two polls for more clips of a batch


class ScoringLoop(ABC):
    """A stateless worker that scores up to `batch` clips at a time. Equal rewards give equal scores on any worker."""

    def __init__(self, worker: str, batch: int) -> None:
        self.worker, self._batch = worker, batch
        self.doubts: dict[str, str] = {}  # score -> why nothing was given it so far (`rewarders/judging/rehearsal.py`)

    @abstractmethod
    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """Returns one `Score` per task, in order, with a value for every dimension (NaN if it could not be scored)."""

    def work(self, exchange: RewarderExchange) -> int:
        """Scores the clips that are waiting. Returns their number, 0 if there were none."""
        return self.finish(exchange, self.gather(exchange))

    def gather(
        self,
        exchange: RewarderExchange,
        patience: float = 0.0,
        wait: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> list[ScoreTask]:
        """Leases clips for one batch. Returns at once if the batch is full, else `patience` seconds after the first
        clip.

        `wait` sleeps for the given seconds between two polls; if it returns true (a stop request), gathering ends
        early.
        """
        tasks = list(exchange.lease_candidates(self.worker, self._batch))
        wait, deadline = wait or Event().wait, clock() + patience
        while tasks and len(tasks) < self._batch and (left := deadline - clock()) > 0:
            if wait(min(left, POLL_SECONDS)):
                break
            tasks += exchange.lease_candidates(self.worker, self._batch - len(tasks))
        return tasks

    def finish(self, exchange: RewarderExchange, tasks: Sequence[ScoreTask]) -> int:
        """Scores the gathered clips and submits the scores. Returns the number of clips."""
        if tasks:
            exchange.submit_scores(self.worker, self.score(tasks))
            log.debug("%d clips scored", len(tasks))
        return len(tasks)
