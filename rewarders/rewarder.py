"""The rewarder: decodes clips and scores them in every dimension.

```
ScoreTask (mp4) --> decode (decord) --> every judge, one batch --> Score
```

A clip that cannot be read or scored gets NaN in place of the value, with the reason, and the others go on; the
exchange then fails that clip's group and counts it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from hashlib import blake2b

from common.config import RewardConfig
from common.data.video import decode_video
from common.errors import ConfigError
from common.feedback import counted
from common.messages import Prompt, Score, ScoreTask
from rewarders.interface import Clip, Judge, JudgeUnavailable, Opinion, Reward, as_judge
from rewarders.loop import ScoringLoop

log = logging.getLogger(__name__)


class Rewarder(ScoringLoop):
    """Scores decoded clips with all of `rewards`."""

    def __init__(self, rewards: Sequence[Reward | Judge], config: RewardConfig, worker: str = "rewarder-0") -> None:
        """`ConfigError` when there is no reward, or two of one dimension."""
        self.judges = tuple(as_judge(reward) for reward in rewards)
        names = self.dimensions
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"rewards {names}: at least one is needed, and no dimension twice")
        super().__init__(worker, config.batch)
        self._version = _version(self.judges)

    @property
    def dimensions(self) -> list[str]:
        """What is scored."""
        return [output for judge in self.judges for output in judge.outputs]

    @property
    def reward_version(self) -> str:
        """Digest over all rewards, blake2b-128 hex: scores of different versions do not compare."""
        return self._version

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`."""
        clips = [_decode(task) for task in tasks]
        readable = [i for i, clip in enumerate(clips) if isinstance(clip, Clip)]
        kept = [clip for clip in clips if isinstance(clip, Clip)]
        prompts = [tasks[i].prompt for i in readable]
        scores = [Score(task.candidate_id, self._version, {}, purpose=task.purpose) for task in tasks]
        for judge in self.judges:
            found: list[Opinion] = [clip if isinstance(clip, str) else "" for clip in clips]
            for i, opinion in zip(readable, opinions(judge, kept, prompts), strict=True):
                found[i] = opinion
            for score, opinion in zip(scores, found, strict=True):
                _write_down(score, judge, opinion)
        return scores


def rewarder_for(rewards: Sequence[Reward | Judge], config: RewardConfig, worker: str = "rewarder-0") -> Rewarder:
    """A run's rewarder. `ConfigError` also when something that counts is scored by none of `rewards`."""
    rewarder = Rewarder(rewards, config, worker)
    counted(config, rewarder.dimensions)
    return rewarder


def _version(judges: Sequence[Judge]) -> str:
    whole = blake2b(digest_size=16)
    for name, digest in sorted((",".join(judge.outputs), judge.digest) for judge in judges):
        whole.update(f"{name}|{digest}\n".encode())
    return whole.hexdigest()


def _decode(task: ScoreTask) -> Clip | str:
    try:
        return read_clip(task.clip)
    except ValueError as error:
        log.warning("candidate %s: %s", task.candidate_id, error)
        return str(error)


def read_clip(file: bytes) -> Clip:
    """A video file, decoded. `ValueError` when it cannot be read."""
    return Clip(*decode_video(file), file)


def _write_down(score: Score, judge: Judge, opinion: Opinion) -> None:
    for output in judge.outputs:
        score.values[output] = math.nan if isinstance(opinion, str) else opinion.get(output, math.nan)
        if isinstance(opinion, str):
            score.problems[output] = opinion


def opinions(judge: Judge, clips: list[Clip], prompts: list[Prompt]) -> list[Opinion]:
    """The judge's values; a clip that it refuses is without, and does not take the batch down with it."""
    if not clips:
        return []
    name = ", ".join(judge.outputs)
    try:
        return [*judge.judge(clips, prompts)]
    except JudgeUnavailable as error:
        log.warning("%s of %d clips: %s", name, len(clips), error)
        return [str(error)] * len(clips)
    except ValueError as error:
        if len(clips) == 1:
            log.warning("%s of a clip for prompt %s: %s", name, prompts[0].id, error)
            return [str(error)]
    return [opinions(judge, [clip], [prompt])[0] for clip, prompt in zip(clips, prompts, strict=True)]
