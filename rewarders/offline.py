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
    """Gives training clips the scores of `known`. Probe and evaluation clips go to `online`, if there are any.

    `version` is the reward version of the known scores.
    """

    def __init__(
        self,
        online: ScoringLoop | None,
        known: Callable[[ScoreTask], Mapping[str, float]],
        version: str,
        batch: int,
        worker: str,
    ) -> None:
        super().__init__(worker, batch)
        self._online, self._known, self._version = online, known, version

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        others = [task for task in tasks if task.purpose is not Purpose.TRAIN]
        if others and self._online is None:
            raise RuntimeError(f"{self.worker}: asked to score held-out clips, but the run samples none")
        online = iter(self._online.score(others) if self._online is not None else [])
        return [self._score(task) if task.purpose is Purpose.TRAIN else next(online) for task in tasks]

    def _score(self, task: ScoreTask) -> Score:
        return Score(task.candidate_id, self._version, dict(self._known(task)), purpose=task.purpose)


class WithoutReward(ScoringLoop):
    """Passes clips on without a score: the run has no reward, and people rate its held-out clips."""

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        return [Score(task.candidate_id, "none", {}, purpose=task.purpose) for task in tasks]


def rewarder_of_pairs(online: ScoringLoop, pairs: OfflinePairs, config: RewardConfig) -> OfflineRewarder:
    """Gives a clip its mean opinion score, 0..100, in every dimension, so dimension weights do not matter.

    Without a reward it is the only score (`PEOPLE`).
    """
    dimensions = expected_scores(config)

    def known(task: ScoreTask) -> dict[str, float]:
        return dict.fromkeys(dimensions, pairs(task.ordinal).clips[task.index].score)

    return OfflineRewarder(online, known, f"people-{pairs.digest}", config.batch, online.worker)


def rewarder_of_groups(
    online: ScoringLoop | None, groups: StoredGroups, config: RewardConfig, worker: str
) -> OfflineRewarder:
    """Gives a clip its raw scores in the candidate set."""
    return OfflineRewarder(
        online, lambda task: groups(task.ordinal)[task.index].scores, f"set-{groups.set.digest}", config.batch, worker
    )
