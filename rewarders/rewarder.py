"""The rewarder: decodes clips and scores them in every dimension.

```
ScoreTask (mp4) --> decode (decord) --> every reward, one batch --> Score
```

A clip that cannot be read or scored gets NaN in place of the value and the others go on; the exchange then fails
that clip's group, with NaN as the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from common.clips import decode_clip
from common.config import ConfigError, RewardConfig
from common.messages import Prompt, Score, ScoreTask
from rewarders.base import Reward
from rewarders.loop import ScoringLoop

log = logging.getLogger(__name__)


class Rewarder(ScoringLoop):
    """Scores decoded clips with all of `rewards`."""

    def __init__(self, rewards: Sequence[Reward], config: RewardConfig, worker: str = "rewarder-0") -> None:
        """`ConfigError` when there is no reward, or two of one dimension."""
        names = [reward.dimension for reward in rewards]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"rewards {names}: at least one is needed, and no dimension twice")
        super().__init__(worker, config.batch)
        self.rewards = tuple(rewards)
        self._version = _version(self.rewards)

    @property
    def reward_version(self) -> str:
        """Digest over all rewards, blake2b-128 hex: scores of different versions do not compare."""
        return self._version

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        clips = [_decode(task) for task in tasks]
        values: list[dict[str, float]] = [{} for _ in tasks]
        readable = [i for i, clip in enumerate(clips) if clip is not None]
        kept = [clip for clip in clips if clip is not None]
        prompts = [tasks[i].prompt for i in readable]
        for reward in self.rewards:
            for entry in values:
                entry[reward.dimension] = math.nan
            for i, value in zip(readable, _values(reward, kept, prompts), strict=True):
                values[i][reward.dimension] = value
        return [Score(task.candidate_id, self._version, entry) for task, entry in zip(tasks, values, strict=True)]


def rewarder_for(rewards: Sequence[Reward], config: RewardConfig, worker: str = "rewarder-0") -> Rewarder:
    """A run's rewarder. `ConfigError` also when a dimension that has a weight is scored by none of `rewards`."""
    scored = sorted(reward.dimension for reward in rewards)
    for name, weight in config.weights.model_dump().items():
        if weight > 0 and name not in scored:
            raise ConfigError(f"reward.weights.{name} = {weight}: no head scores it; scored are {scored}")
    return Rewarder(rewards, config, worker)


def _version(rewards: Sequence[Reward]) -> str:
    whole = blake2b(digest_size=16)
    for name, digest in sorted((reward.dimension, reward.digest) for reward in rewards):
        whole.update(f"{name}|{digest}\n".encode())
    return whole.hexdigest()


def _decode(task: ScoreTask) -> np.ndarray | None:
    try:
        return decode_clip(task.clip)
    except ValueError as error:
        log.warning("candidate %s: %s", task.candidate_id, error)
        return None


def _values(reward: Reward, clips: list[np.ndarray], prompts: list[Prompt]) -> list[float]:
    """The reward's values; a clip that it refuses gives NaN, without taking the batch down with it."""
    if not clips:
        return []
    try:
        return reward.score(clips, prompts)
    except ValueError as error:
        if len(clips) == 1:
            log.warning("%s of a clip for prompt %s: %s", reward.dimension, prompts[0].id, error)
            return [math.nan]
    return [_values(reward, [clip], [prompt])[0] for clip, prompt in zip(clips, prompts, strict=True)]
