"""The learning rate of every optimizer step: the schedules of transformers, at the same steps as in its Trainer.

Step k of `steps` has the rate of `transformers.get_scheduler` after k - 1 steps, k = 1, 2, ... So the first step of a
warm-up has rate 0, and the last step of a decay is one above the end of its curve. `s` is k - 1, `W` the warm-up's
steps and `N` `RunConfig.steps`:

| `learner.lr_schedule` | factor of `learner.lr` for s >= W; before, all but constant have s / W |
|---|---|
| constant, constant_with_warmup | 1 |
| linear | (N - s) / (N - W) |
| cosine | (1 + cos(pi (s - W) / (N - W))) / 2 |
| cosine_with_min_lr | m + (1 - m) times that of cosine, m = `learner.min_lr_ratio` |
| inverse_sqrt | sqrt(t / (s - W + t)), t = W, or 10 000 without a warm-up |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from common.config import LearnerConfig


def learning_rates(config: LearnerConfig, steps: int) -> Callable[[int], float]:
    """Returns the function from an optimizer step, 1 .. `steps`, to its learning rate.

    It has no state: a run that resumes at a step continues with the rate of that step.
    """
    from transformers import get_scheduler  # noqa: PLC0415 - slow to import, and a simulated learner has no use for it

    scheduler: Any = get_scheduler(
        config.lr_schedule,
        torch.optim.SGD([torch.zeros(1)], lr=config.lr),
        num_warmup_steps=config.warmup_steps or math.ceil(config.warmup_ratio * steps),
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr_rate": config.min_lr_ratio} if config.min_lr_ratio else None,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda step: config.lr * factor(step - 1)
