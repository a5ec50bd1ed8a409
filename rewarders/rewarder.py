"""Decodes clips and scores them with every reward model of the run.

```
ScoreTask (mp4) --> decode --> every judge, one batch --> Score
```

A clip that cannot be decoded or scored gets NaN and a reason; the rest of the batch is scored normally. The exchange
fails the group of such a clip and counts it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from common.config import RewardConfig
from common.data.player import frames_at, timeline
from common.errors import ConfigError
from common.messages import Prompt, Score, ScoreTask
from common.reward_composition import reward_weights
from rewarders.first_frame import with_first_frame
from rewarders.interface import Clip, Judge, JudgeBrokenError, JudgeResult, Reward, as_judge
from rewarders.judging.pace import Pace
from rewarders.judging.results import OnceLog, UnexpectedError, judge_clips
from rewarders.judging.thread import JUDGES
from rewarders.loop import ScoringLoop

log = logging.getLogger(__name__)

MAX_BROKEN = 3  # consecutive batches in which a judge's code fails for every clip before the run ends


class Rewarder(ScoringLoop):
    """Scores clips with all of `rewards`."""

    def __init__(
        self,
        rewards: Sequence[Reward | Judge],
        config: RewardConfig,
        worker: str = "rewarder-0",
        what: str = "reward",
    ) -> None:
        """Errors call a reward `what`. Raises `ConfigError` if there is no reward, or if two share a dimension."""
        self.what = what
        self.judges = tuple(as_judge(reward) for reward in rewards)
        names = self.dimensions
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"rewards {names}: at least one is needed, and dimensions must be unique")
        super().__init__(worker, config.batch)
        self.call = partial(JUDGES.call, seconds=config.judge_seconds)
        self._version = _version(self.judges)
        self._broken = [0] * len(self.judges)  # batches in a row without a score, because the judge's code failed
        self._paces = [Pace(", ".join(judge.outputs)) for judge in self.judges]
        self._once = OnceLog()

    @property
    def dimensions(self) -> list[str]:
        """Names of all scores."""
        return [output for judge in self.judges for output in judge.outputs]

    @property
    def reward_version(self) -> str:
        """blake2b-128 hex over all rewards. Scores with different versions cannot be compared."""
        return self._version

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `ScoringLoop.score`. Raises `JudgeBrokenError` if a judge's code fails for every clip, `MAX_BROKEN` times
        in a row or for the first ones, `JudgeHangsError`, and `ConfigError` if a reward in doubt scores none of the
        clips."""
        decoded = [_decode(task) for task in tasks]
        readable = [i for i, one in enumerate(decoded) if not isinstance(one, str)]
        pairs = [one for one in decoded if not isinstance(one, str)]
        clips, prompts = [clip for clip, _ in pairs], [prompt for _, prompt in pairs]
        scores = [Score(task.candidate_id, self._version, {}, purpose=task.purpose) for task in tasks]
        for number, judge in enumerate(self.judges):
            results: list[JudgeResult] = [one if isinstance(one, str) else "" for one in decoded]
            began = time.perf_counter()
            judged = judge_clips(judge, clips, prompts, self._once, self.call)
            self._paces[number].add(len(clips), time.perf_counter() - began)
            self._check_broken(number, judged)
            for i, result in zip(readable, judged, strict=True):
                results[i] = result
            for score, result in zip(scores, results, strict=True):
                _add_result(score, judge, result)
        self._resolve_doubts(scores)
        return scores

    def _resolve_doubts(self, scores: Sequence[Score]) -> None:
        for output, before in self.doubts.items():
            if not any(math.isfinite(score.values[output]) for score in scores):
                why = next((score.problems[output] for score in scores if output in score.problems), before)
                if isinstance(why, UnexpectedError):
                    raise JudgeBrokenError(f"{why}; it failed for made clips and for the first clips of this run")
                raise ConfigError(
                    f"{self.what} {output}: it scored neither the first clips of this run nor made ones: {why}; the "
                    "run ends here, because no clip without a score can be compared"
                )
        if scores:
            self.doubts = {}

    def _check_broken(self, number: int, judged: Sequence[JudgeResult]) -> None:
        if not judged:
            return
        broken = all(isinstance(one, UnexpectedError) for one in judged)
        self._broken[number] = self._broken[number] + 1 if broken else 0
        if self._broken[number] >= MAX_BROKEN:
            raise JudgeBrokenError(f"{judged[0]}; it failed for every clip of {MAX_BROKEN} batches in a row")


def rewarder_for(rewards: Sequence[Reward | Judge], config: RewardConfig, worker: str = "rewarder-0") -> Rewarder:
    """Returns a run's rewarder. Raises `ConfigError` if a counted dimension is scored by none of `rewards`."""
    rewarder = Rewarder(rewards, config, worker)
    reward_weights(config, rewarder.dimensions)
    return rewarder


def _version(judges: Sequence[Judge]) -> str:
    whole = blake2b(digest_size=16)
    for name, digest in sorted((",".join(judge.outputs), judge.digest) for judge in judges):
        whole.update(f"{name}|{digest}\n".encode())
    return whole.hexdigest()


def _decode(task: ScoreTask) -> tuple[Clip, Prompt] | str:
    """The clip, and its prompt with the image as the clip's first frame (`common/images.py`); else what is wrong."""
    try:
        clip = read_clip(task.clip)
        return clip, with_first_frame(task.prompt, clip.frames)
    except ValueError as error:
        log.warning("candidate %s: %s", task.candidate_id, error)
        return str(error)


def read_clip(file: bytes) -> Clip:
    """Decodes a video file. Judges get the file itself only if every decoder shows the same of it.

    Raises `ValueError` if that fails.
    """
    shown = timeline(file)
    return Clip(frames_at(file, shown.evenly()), shown.fps, file if shown.plain else None)


def _add_result(score: Score, judge: Judge, result: JudgeResult) -> None:
    for output in judge.outputs:
        score.values[output] = math.nan if isinstance(result, str) else result.get(output, math.nan)
        if isinstance(result, str):
            score.problems[output] = result
