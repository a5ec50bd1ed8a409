"""Training clips of offline pairs get their human ratings; probes and evaluations go to the reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import RewardConfig, RunConfig
from common.data.offline_pairs import OfflinePair, PairClip
from common.messages import Prompt, Purpose, Score, ScoreTask
from common.reward_composition import expected_scores
from rewarders.loop import ScoringLoop
from rewarders.offline import rewarder_of_pairs
from rewarders.simulated import SimulatedRewarder


@dataclass
class FakePairs:
    """One pair per ordinal: 90 + ordinal against 10 + ordinal."""

    digest: str = "abc"

    def __call__(self, ordinal: int) -> OfflinePair:
        chosen, rejected = (PairClip(Path(f"{ordinal}.mp4"), "walks", None, base + ordinal) for base in (90.0, 10.0))
        return OfflinePair(chosen, rejected, category=None)


class Online(ScoringLoop):
    """Scores 50 in one dimension and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("rewarder-3", 4)
        self.asked: list[str] = []

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        self.asked += [task.candidate_id for task in tasks]
        return [Score(task.candidate_id, "heads", {"motion": 50.0}, purpose=task.purpose) for task in tasks]


def task(name: str, ordinal: int, index: int, purpose: Purpose = Purpose.TRAIN) -> ScoreTask:
    return ScoreTask(name, Prompt(7, "p", "walks", purpose=purpose), b"", ordinal, index)


def test_training_clips_get_their_ratings_and_others_are_scored() -> None:
    online, pairs, config = Online(), FakePairs(), RewardConfig()
    as_pairs: Any = pairs
    rewarder = rewarder_of_pairs(online, as_pairs, config)
    tasks = [task("any id", 2, 0), task("probe", 1 << 40, 0, Purpose.PROBE), task("another", 3, 1)]
    chosen, probe, rejected = rewarder.score(tasks)
    assert chosen.values == dict.fromkeys(expected_scores(config), 92.0)
    assert rejected.values == dict.fromkeys(expected_scores(config), 13.0)
    versions = [one.reward_version for one in (chosen, rejected, probe)]
    assert versions == ["people-abc", "people-abc", "heads"]
    assert probe.values == {"motion": 50.0}
    assert online.asked == ["probe"]
    assert rewarder.worker == "rewarder-3"
    assert [one.candidate_id for one in (chosen, probe, rejected)] == ["any id", "probe", "another"]
    assert [one.purpose for one in (chosen, probe, rejected)] == [Purpose.TRAIN, Purpose.PROBE, Purpose.TRAIN]


def test_simulated_scores_carry_the_purpose_of_their_task() -> None:
    tasks = [task("0-0-v0", 0, 0), task("held out", 1 << 40, 0, Purpose.EVAL)]
    config = RunConfig.model_validate({"name": "s", "simulation": {"score_seconds": 0.0}})
    assert [one.purpose for one in SimulatedRewarder(config).score(tasks)] == [Purpose.TRAIN, Purpose.EVAL]
