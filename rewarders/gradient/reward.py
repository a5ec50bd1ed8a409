"""The reward of a run as a differentiable function of pixels, for algorithms such as ReFL.

    R_f = sum over d of w_d x_df / 100 / sum over d of w_d

| symbol | here | meaning |
|---|---|---|
| d | `common.reward_composition.reward_weights` | the dimensions with a weight w_d |
| x_df | `DifferentiableReward.frame_scores` | raw score of frame f; for judges mapped to 0 .. 100 |
| R_f | `FrameRewards.__call__` | reward of frame f; the mean over the frames is the clip's, R~ before clamping |

With a gradient are all heads, the image rewards (`clip_score`, `hps`, `aesthetic`, `image_reward`) and every class
with a method ``frame_scores``. A run whose reward has another part cannot use such an algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.config import RewardConfig, RewardJudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from common.reward_composition import RANGE, reward_weights
from rewarders.head_files import head_classes, load_heads
from rewarders.interface import DifferentiableReward
from rewarders.judges.adapter import InputSpec, input_spec_of
from rewarders.judges.registry import KINDS, REWARD_JUDGES
from rewarders.kinds import class_of

DIFFERENTIABLE = ("clip_score", "hps", "aesthetic", "image_reward")  # kinds of judges


@dataclass(frozen=True)
class Part:
    """One weighted dimension; its raw scores `low` .. `high` count as 0 .. 1."""

    reward: DifferentiableReward
    weight: float
    low: float
    high: float


class FrameRewards:
    """R of every frame. Opened by `open_gradients`."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)

    def __call__(self, clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Returns R, ``[n, F]``, of float32 clips ``[n, F, 3, H, W]`` in 0..1, with a gradient to them."""
        total = torch.zeros(clips.shape[:2], device=clips.device)
        for part in self._parts:
            scores = part.reward.frame_scores(clips, prompts).to(total)
            total = total + part.weight * (scores - part.low) / (part.high - part.low)
        return total / sum(part.weight for part in self._parts)


def open_gradients(config: RewardConfig, device: str = "cpu") -> FrameRewards:
    """Opens all rewards with a weight. Raises `ConfigError` as `check_gradients` does, or if one cannot be opened."""
    weights = check_gradients(config)
    parts = []
    for head in load_heads(config.path, device) if config.path else []:
        if isinstance(head, DifferentiableReward) and head.dimension in weights:
            parts.append(Part(head, weights[head.dimension], 0.0, RANGE))
    for name in config.judges.keys() & weights:
        parts.append(_open_judge(name, config.judges[name], weights[name], device))
    return FrameRewards(parts)


def check_gradients(config: RewardConfig) -> dict[str, float]:
    """Returns the weight of each reward. Raises `ConfigError` if one of them has no gradient. Loads no model."""
    classes = dict(head_classes(config.path)) if config.path else {}
    for name, judge in config.judges.items():
        classes[name] = class_of(judge.kind, KINDS)
        classes |= {f"{name}.{output}": classes[name] for output in judge.outputs}
        if config.feedback.startswith(f"{name}."):
            classes[config.feedback] = classes[name]
    weights = reward_weights(config, classes)
    for name in weights:
        if not hasattr(classes[name], "frame_scores"):
            raise ConfigError(
                f"reward {name}: {classes[name].__name__} has no gradient, which the algorithm needs; the heads, "
                f"the judges {', '.join(DIFFERENTIABLE)} and classes with frame_scores have one (docs/extending.md)"
            )
    return weights


def _open_judge(name: str, judge: RewardJudgeConfig, weight: float, device: str) -> Part:
    try:
        made: Any = class_of(judge.kind, KINDS)(judge, device)
        needs = input_spec_of(judge, getattr(made, "needs", None) or InputSpec())
    except ConfigError as error:
        raise ConfigError(f"{REWARD_JUDGES}.{name}: {error}") from None
    if needs.fps or needs.frames or needs.size:
        raise ConfigError(f"{REWARD_JUDGES}.{name}: fps, frames and size: a gradient needs the clip as it is")
    return Part(made, weight, needs.low, needs.high)
