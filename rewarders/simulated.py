"""A rewarder without a model: it waits, then draws scores at random (`common/simulation.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.config import RunConfig
from common.messages import Score, ScoreTask
from common.reward_composition import expected_scores
from common.simulation import Simulation
from rewarders.loop import ScoringLoop


class SimulatedRewarder(ScoringLoop):
    """Scores are a function of the candidate's id. A simulated failure gives NaN in all dimensions."""

    def __init__(self, config: RunConfig, worker: str = "rewarder-0") -> None:
        super().__init__(worker, config.reward.batch)
        self._dimensions = expected_scores(config.reward)
        self._seconds, self._simulation = config.simulation.score_seconds, Simulation(config)

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        return [self._score(task) for task in tasks]

    def _score(self, task: ScoreTask) -> Score:
        candidate = task.candidate_id
        self._simulation.work(self._seconds, "score", candidate)
        failed = self._simulation.fails("score", candidate)
        values = {name: math.nan if failed else self._simulation.value(name, candidate) for name in self._dimensions}
        return Score(candidate, "simulated", values, purpose=task.purpose)
