"""A rewarder that knows what people said: their opinions score recorded pairs, the usual rewards score all else."""

from __future__ import annotations

from collections.abc import Sequence

from common.config import RewardConfig
from common.data.offline_pairs import RecordedPairs
from common.exchange.rewards import expected_scores
from common.messages import Purpose, Score, ScoreTask
from rewarders.loop import ScoringLoop


class OpinionRewarder(ScoringLoop):
    """The mean opinion of a recorded clip, 0..100, stands in every dimension, whatever the dimensions' weights."""

    def __init__(self, others: ScoringLoop, recorded: RecordedPairs, config: RewardConfig) -> None:
        super().__init__(others.worker, config.batch)
        self._others, self._recorded = others, recorded
        self._dimensions = expected_scores(config)
        self._version = f"people-{recorded.digest}"

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        scored = self._others.score([task for task in tasks if task.prompt.purpose is not Purpose.TRAIN])
        usual = {score.candidate_id: score for score in scored}
        return [usual.get(task.candidate_id) or self._opinion(task) for task in tasks]

    def _opinion(self, task: ScoreTask) -> Score:
        _, index, _ = task.candidate_id.split("-")
        value = self._recorded(task.prompt.ordinal).clips[int(index)].score
        return Score(task.candidate_id, self._version, dict.fromkeys(self._dimensions, value))
