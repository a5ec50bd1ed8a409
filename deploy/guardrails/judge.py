"""The held-out judge scores probe clips and is never trained on: ``guardrails.judges``, else the toon world's oracle.

The judges run in a separate `Rewarder` (`rewarders/rewarder.py`), with the same kinds and the same protocol as the
judges of the reward. A clip that they cannot score is left out. They run in the process of the run loop: in a cluster
that is the hub, on the CPU. Serve a large judge behind ``kind = "remote"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from common.config import RunConfig
from common.messages import Prompt
from common.toon.oracle import OracleScores, judge, oracle_applies
from common.toon.prompts import shot_of
from rewarders.judges import open_judges
from rewarders.judging.rehearsal import rehearse
from rewarders.rewarder import Rewarder

ANSWERS = ("identity", "motion", "smoothness")


def held_out_judge(config: RunConfig) -> Rewarder | None:
    """Returns the judges of ``guardrails.judges``, else the oracle; None if that does not apply (`oracle_applies`).

    Judges are shown made clips first, as rewards are (`rewarders/judging/rehearsal.py`). Raises `ConfigError` for one
    that is invalid, cannot be opened, or refuses every clip of the model's size.
    """
    device = "cpu" if config.mode == "cluster" else config.model.device
    judges = open_judges(config.guardrails.judges, device, "guardrails.judges")
    if judges:
        rewarder = Rewarder(judges, config.reward, "judge", "guardrails.judges")
        rehearse(rewarder, config.model)
        return rewarder
    if not oracle_applies(config):
        return None
    return Rewarder([OracleAnswer(name) for name in ANSWERS], config.reward, "judge")


class OracleAnswer:
    """One score of the oracle as a `Reward`, 0 to 100. Clips are uint8 arrays (frames, height, width, 3)."""

    def __init__(self, answer: str) -> None:
        self.dimension, self.digest = answer, f"oracle-{answer}"

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`."""
        return [
            getattr(_oracle_scores(clip.tobytes(), clip.shape, prompt), self.dimension)
            for clip, prompt in zip(clips, prompts, strict=True)
        ]


@lru_cache(maxsize=64)
def _oracle_scores(data: bytes, shape: tuple[int, ...], prompt: Prompt) -> OracleScores:
    """Cached: three `OracleAnswer` objects score the same clip."""
    return judge(np.frombuffer(data, np.uint8).reshape(shape).copy(), shot_of(prompt))
