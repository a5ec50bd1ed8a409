"""What a reward model is to the rest of the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from common.messages import Prompt


class Reward(Protocol):
    """Scores clips in one dimension. A score depends on the clip and its prompt alone, never on the batch it is in."""

    @property
    def dimension(self) -> str:
        """What is scored, e.g. ``smoothness``; unique among the rewards of a run."""
        ...

    @property
    def digest(self) -> str:
        """Identifies weights and code path: equal digests give equal scores."""
        ...

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """One raw value per clip, higher is better (AnimeReward: 0..100).

        `clips` are uint8 ``[F, H, W, 3]``, `prompts` what each was sampled for. `ValueError` for a clip that the
        reward cannot take (shape, type), or for another number of prompts than clips.
        """
        ...
