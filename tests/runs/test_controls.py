"""Controls with the embedded model: does the preference raise the reward, or would any training do?

Every run here is the default one in one process, with fewer held-out prompts and no lag; all start from the same base
model and are compared on the same prompts and seeds. A run drifts a little by itself, so the claims are tested on two
seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import load_config
from common.intervals import mean_interval
from common.messages import Prompt, Purpose
from deploy.run_dir import layout
from deploy.runtime import serial
from rewarders.head_files import load_heads
from rewarders.interface import Reward

PROMPTS, SEEDS = 72, (0, 1)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class TurnedAround:
    """A head with inverted scores of training clips, for this share of the prompts.

    All six heads invert the same prompts, so that the best and the worst clip are swapped. Held-out clips keep their
    scores.
    """

    def __init__(self, head: Reward, share: float) -> None:
        self.head, self.share = head, share
        self.dimension, self.digest = head.dimension, f"{head.digest}-{share}"

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        values = self.head.score(clips, prompts)
        return [100 - value if self._turned(prompt) else value for value, prompt in zip(values, prompts, strict=True)]

    def _turned(self, prompt: Prompt) -> bool:
        dice = int.from_bytes(blake2b(str(prompt.ordinal).encode(), digest_size=4).digest()) / 2**32
        return prompt.purpose == Purpose.TRAIN and dice < self.share


def gains(root: Path, name: str, share: float = 0.0, **flags: Any) -> np.ndarray:
    """Changes of the mean AnimeReward by held-out prompt after a run in which `share` of the pairs are swapped."""
    values = {"name": name, "root": root, "exchange.max_lag": 0, "evaluation.prompts": PROMPTS, "evaluation.clips": 0}
    values |= flags
    config = load_config(layout.TOON, {key: str(value) for key, value in values.items()})
    heads: list[Any] = [TurnedAround(head, share) for head in load_heads("toon")]
    result = serial.run(config, heads).result
    assert result is not None
    sides = ([record[side]["learned"]["reward"] for record in result["by_prompt"]] for side in ("base", "aligned"))
    before, after = (np.array(side) for side in sides)
    return after - before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="module")
def gapo(folder: Path) -> np.ndarray:
    """Gains of GAPO, ``[seeds, prompts]``."""
    return np.stack([gains(folder, f"gapo-{seed}", seed=seed) for seed in SEEDS])


def test_without_a_learning_rate_nothing_changes(folder: Path) -> None:
    assert not gains(folder, "still", steps=2, **{"learner.lr": 0}).any()


def test_the_reward_rises_only_with_correct_preferences(folder: Path, gapo: np.ndarray) -> None:
    control = np.stack([gains(folder, f"random-{seed}", share=0.5, seed=seed) for seed in SEEDS])
    print(f"GAPO {gapo.mean(1)}, swapped at random {control.mean(1)}")
    assert mean_interval(gapo.mean(0)).low > 0
    assert control.mean() < gapo.mean() / 3
    assert mean_interval((gapo - control).mean(0)).low > 0


def test_with_swapped_preferences_the_reward_falls(folder: Path, gapo: np.ndarray) -> None:
    swapped = gains(folder, "swapped", share=1.0, seed=0)
    print(f"GAPO {gapo[0].mean():+.2f}, swapped throughout {swapped.mean():+.2f}")
    assert mean_interval(swapped).high < 0
