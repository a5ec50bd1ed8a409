"""A rewarder for offline training pairs: their scores are the human ratings, all other clips are scored as usual."""

from __future__ import annotations

from collections.abc import Sequence

from common.config import RewardConfig
from common.data.offline_pairs import OfflinePairs
from common.messages import Purpose, Score, ScoreTask
from common.reward_composition import expected_scores
from rewarders.loop import ScoringLoop


class OfflineRewarder(ScoringLoop):
    """Gives a clip of an offline pair its mean opinion score, 0..100, in every dimension, so dimension weights do not
    matter.

    Probe and evaluation clips go to `online`, the rewarder of the run's reward models.
    """

    def __init__(self, online: ScoringLoop, pairs: OfflinePairs, config: RewardConfig) -> None:
        super().__init__(online.worker, config.batch)
        self._online, self._pairs = online, pairs
        self._dimensions = expected_scores(config)
        self._version = f"people-{pairs.digest}"

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        online = iter(self._online.score([task for task in tasks if task.purpose is not Purpose.TRAIN]))
        return [self._offline_score(task) if task.purpose is Purpose.TRAIN else next(online) for task in tasks]

    def _offline_score(self, task: ScoreTask) -> Score:
        value = self._pairs(task.ordinal).clips[task.index].score
        return Score(task.candidate_id, self._version, dict.fromkeys(self._dimensions, value), purpose=task.purpose)
