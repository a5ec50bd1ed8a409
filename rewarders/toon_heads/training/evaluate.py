"""How well scores rank clips: Spearman's rank correlation (SRCC) with the renderer's ground truth, per dimension.

Pixel baselines show what a user has without training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.images import encode_png
from common.messages import Prompt
from common.toon.prompts import shot_id
from common.toon.world import DIMENSIONS
from rewarders.interface import Reward
from rewarders.toon_heads.training.dataset import Samples
from rewarders.training.pixel_baselines import SIGNALS, measure_signals
from rewarders.training.ranking_metrics import srcc


def prompts_of(samples: Samples) -> list[Prompt]:
    """Returns the prompt of every sample: its caption and its clean first frame."""
    return [
        Prompt(ordinal=i, id=shot_id(shot), text=text, image=encode_png(first), character=shot.character)
        for i, (shot, text, first) in enumerate(zip(samples.shots, samples.captions, samples.firsts, strict=True))
    ]


def evaluate_heads(heads: Sequence[Reward], samples: Samples) -> dict[str, float]:
    """Returns the SRCC per dimension with `samples.truths`; NaN where all scores or all truths are equal."""
    prompts = prompts_of(samples)
    return {
        head.dimension: srcc(np.array(head.score(list(samples.clips), prompts)), samples.truth_of(head.dimension))
        for head in heads
    }


def evaluate_signals(samples: Samples) -> dict[str, float]:
    """Returns per dimension the SRCC of the best pixel baseline."""
    values = [measure_signals(clip, first) for clip, first in zip(samples.clips, samples.firsts, strict=True)]
    return {name: best_signal(values, samples.truth_of(name)) for name in DIMENSIONS}


def best_signal(values: Sequence[Mapping[str, float]], truths: np.ndarray) -> float:
    """Returns the highest SRCC of all signals, each with its better sign; `values` has one mapping per clip."""
    found = [srcc(np.array([one[name] for one in values]), truths) for name in SIGNALS]
    return float(np.nanmax(np.abs(found)))
