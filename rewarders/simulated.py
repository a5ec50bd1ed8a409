"""A rewarder without a model: scores are drawn, after a pause (`common/simulation.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.config import RunConfig
from common.exchange.rewards import expected_scores
from common.messages import Score, ScoreTask
from common.simulation import Simulation
from rewarders.loop import ScoringLoop


class SimulatedRewarder(ScoringLoop):
    """A clip's scores are a function of its candidate's id; NaN in all dimensions where scoring it fails."""

    def __init__(self, config: RunConfig, worker: str = "rewarder-0") -> None:
        super().__init__(worker, config.reward.batch)
        self._dimensions = expected_scores(config.reward)
        self._seconds, self._simulation = config.simulation.score_seconds, Simulation(config)

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        return [self._score(task.candidate_id) for task in tasks]

    def _score(self, candidate: str) -> Score:
        self._simulation.work(self._seconds, "score", candidate)
        failed = self._simulation.fails("score", candidate)
        values = {name: math.nan if failed else self._simulation.value(name, candidate) for name in self._dimensions}
        return Score(candidate, "simulated", values)
