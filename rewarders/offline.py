"""A rewarder for training data that has scores already: human ratings, or those of a candidate set.

All other clips are scored as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from common.candidate_set.groups import StoredGroups
from common.config import RewardConfig
from common.data.offline_pairs import OfflinePairs
from common.messages import Purpose, Score, ScoreTask
from common.reward_composition import expected_scores
from rewarders.loop import ScoringLoop


class OfflineRewarder(ScoringLoop):
    """Gives training clips the scores of `known`. Probe and evaluation clips go to `online`.

    `version` is the reward version of the known scores.
    """

    def __init__(
        self, online: ScoringLoop, known: Callable[[ScoreTask], Mapping[str, float]], version: str, batch: int
    ) -> None:
        super().__init__(online.worker, batch)
        self._online, self._known, self._version = online, known, version

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        online = iter(self._online.score([task for task in tasks if task.purpose is not Purpose.TRAIN]))
        return [self._score(task) if task.purpose is Purpose.TRAIN else next(online) for task in tasks]

    def _score(self, task: ScoreTask) -> Score:
        return Score(task.candidate_id, self._version, dict(self._known(task)), purpose=task.purpose)


def rewarder_of_pairs(online: ScoringLoop, pairs: OfflinePairs, config: RewardConfig) -> OfflineRewarder:
    """Gives a clip its mean opinion score, 0..100, in every dimension, so dimension weights do not matter."""
    dimensions = expected_scores(config)

    def known(task: ScoreTask) -> dict[str, float]:
        return dict.fromkeys(dimensions, pairs(task.ordinal).clips[task.index].score)

    return OfflineRewarder(online, known, f"people-{pairs.digest}", config.batch)


def rewarder_of_groups(online: ScoringLoop, groups: StoredGroups, config: RewardConfig) -> OfflineRewarder:
    """Gives a clip its raw scores in the candidate set."""
    return OfflineRewarder(
        online, lambda task: groups(task.ordinal)[task.index].scores, f"set-{groups.set.digest}", config.batch
    )
