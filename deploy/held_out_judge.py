"""Who judges the probes without ever being trained on: the toon world's oracle, or a reward of the user's.

A judge is a rewarder of its own (`rewarders/rewarder.py`): the same protocol, and a clip that it cannot take is left
out. It works where the run's course does, in the hub's process of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module

import numpy as np

from common.config import ConfigError, RunConfig
from common.messages import Prompt
from common.toon.oracle import Verdict, judge
from common.toon.prompts import shot_of
from deploy.evaluate import oracle_applies
from rewarders.base import Reward
from rewarders.rewarder import Rewarder

ORACLE = "oracle"
ANSWERS = ("identity", "motion", "smoothness")


def held_out_judge(config: RunConfig) -> Rewarder | None:
    """The judge of ``guard.judge``; None for the oracle where it cannot judge (`oracle_applies`).

    `ConfigError` when there is no such thing, or it is no reward.
    """
    if config.guard.judge != ORACLE:
        return Rewarder(_named(config.guard.judge), config.reward, "judge")
    return (
        Rewarder([OracleAnswer(name) for name in ANSWERS], config.reward, "judge") if oracle_applies(config) else None
    )


class OracleAnswer:
    """One of the oracle's answers as a `Reward`, 0..100."""

    def __init__(self, answer: str) -> None:
        self.dimension, self.digest = answer, f"oracle-{answer}"

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`."""
        return [
            getattr(_verdict(clip.tobytes(), clip.shape, prompt), self.dimension)
            for clip, prompt in zip(clips, prompts, strict=True)
        ]


@lru_cache(maxsize=64)
def _verdict(data: bytes, shape: tuple[int, ...], prompt: Prompt) -> Verdict:
    """All three answers come from one look."""
    return judge(np.frombuffer(data, np.uint8).reshape(shape).copy(), shot_of(prompt))


def _named(path: str) -> list[Reward]:
    """What the class or function of a dotted path gives when it is called: a reward, or a list of rewards."""
    where, (module, _, name) = f"guard.judge = {path!r}", path.rpartition(".")
    if not module:
        raise ConfigError(f"{where}: allowed are {ORACLE!r} and the dotted path of a class, e.g. mine.judges.Appeal")
    try:
        made = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: cannot be made: {' '.join(str(error).split())}") from None
    rewards = list(made) if isinstance(made, list | tuple) else [made]
    for reward in rewards:
        lacking = [part for part in ("dimension", "digest", "score") if not hasattr(reward, part)]
        if lacking:
            raise ConfigError(f"{where}: gives a {type(reward).__name__}, which is no reward: no {lacking[0]}")
    return rewards
