"""Who judges the probes without ever being trained on: the judges in ``guard.judges``, else the toon world's oracle.

They are a rewarder of their own (`rewarders/rewarder.py`): the same kinds and the same protocol as the judges that make
the reward, and a clip that they cannot take is left out. They work where the run's course does, on the CPU of the hub's
node in a cluster: a large one belongs behind ``kind = "remote"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from common.config import RunConfig
from common.messages import Prompt
from common.toon.oracle import Verdict, judge, oracle_applies
from common.toon.prompts import shot_of
from rewarders.judges import open_judges
from rewarders.rewarder import Rewarder

ANSWERS = ("identity", "motion", "smoothness")


def held_out_judge(config: RunConfig) -> Rewarder | None:
    """The judges of ``guard.judges``, else the oracle; None where that one cannot judge (`oracle_applies`).

    `ConfigError` for a judge that is none, or cannot be opened.
    """
    device = "cpu" if config.mode == "cluster" else config.model.device
    judges = open_judges(config.guard.judges, device, "guard.judges")
    if not judges and not oracle_applies(config):
        return None
    return Rewarder(judges or [OracleAnswer(name) for name in ANSWERS], config.reward, "judge")


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
