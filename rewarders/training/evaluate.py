"""How well scores rank clips: Spearman's rank correlation (SRCC) with the renderer's truth, per dimension.

Beside the heads stand plain signals of the pixels, as a user without training would take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from common.messages import Prompt
from common.toon.prompts import encode_png, shot_id
from rewarders.base import Reward
from rewarders.training.data import Samples


def prompts_of(samples: Samples) -> list[Prompt]:
    """The prompt of every sample: its caption and its clean first frame."""
    return [
        Prompt(ordinal=i, id=shot_id(shot), text=text, image=encode_png(first), character=shot.character)
        for i, (shot, text, first) in enumerate(zip(samples.shots, samples.captions, samples.firsts, strict=True))
    ]


def evaluate_heads(heads: Sequence[Reward], samples: Samples) -> dict[str, float]:
    """SRCC per dimension against `samples.truths`; NaN where all scores or all truths are equal."""
    prompts = prompts_of(samples)
    return {
        head.dimension: srcc(np.array(head.score(list(samples.clips), prompts)), samples.truth_of(head.dimension))
        for head in heads
    }


def evaluate_signals(samples: Samples) -> dict[str, float]:
    """The baseline: SRCC per dimension of one plain signal of the pixels each, with the better sign."""
    clips = samples.clips.astype(np.float32)
    firsts = samples.firsts.astype(np.float32)
    return {
        name: abs(srcc(np.array([signal(clip, first) for clip, first in zip(clips, firsts, strict=True)]), truths))
        for name, signal in SIGNALS.items()
        for truths in [samples.truth_of(name)]
    }


def srcc(scores: np.ndarray, truths: np.ndarray) -> float:
    """Spearman's rank correlation of two ``[K]`` arrays, ties sharing their mean rank."""
    if np.ptp(scores) == 0 or np.ptp(truths) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(scores), rankdata(truths))[0, 1])


def _change(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute difference between neighbouring frames."""
    return float(np.abs(np.diff(clip, axis=0)).mean())


def _bend(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute second difference in time."""
    return float(np.abs(np.diff(clip, 2, axis=0)).mean())


def _edges(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute difference between neighbouring pixels, against the first frame's."""
    return float(np.abs(np.diff(clip, axis=2)).mean() - np.abs(np.diff(first, axis=1)).mean())


def _away(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean absolute difference between the last and the first frame."""
    return float(np.abs(clip[-1] - first).mean())


def _palette(clip: np.ndarray, first: np.ndarray) -> float:
    """Mean distance of the frames' mean colours from the first frame's."""
    return float(np.abs(clip.mean((1, 2)) - first.mean((0, 1))).mean())


Signal = Callable[[np.ndarray, np.ndarray], float]
SIGNALS: dict[str, Signal] = {
    "smoothness": _bend,
    "motion": _change,
    "appeal": _edges,
    "text": _change,
    "image": _away,
    "character": _palette,
}
