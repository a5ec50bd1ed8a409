"""The rewarder's loop, whatever gives the scores: lease clips of any prompts, score them as one batch, submit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from common.exchange.client import Exchange
from common.messages import Score, ScoreTask


class ScoringLoop(ABC):
    """A stateless worker: whoever has the same rewards gives the same scores. Up to `batch` clips at a time."""

    def __init__(self, worker: str, batch: int) -> None:
        self.worker, self._batch = worker, batch

    @abstractmethod
    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """One `Score` per task, in order, with a value for every dimension (NaN: unreadable or not scorable)."""

    def work(self, exchange: Exchange) -> bool:
        """Score what waits; False when there are no clips to score now."""
        tasks = exchange.lease_candidates(self.worker, self._batch)
        if not tasks:
            return False
        exchange.submit_scores(self.worker, self.score(tasks))
        return True
