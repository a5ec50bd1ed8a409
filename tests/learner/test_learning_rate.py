"""The rate of every step, by hand and against a training loop of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from common.config import LearnerConfig
from learner.learning_rate import learning_rates


def rates(steps: int, count: int | None = None, **keys: Any) -> list[float]:
    config = LearnerConfig.model_validate({"lr": 8.0, **keys})
    return [learning_rates(config, steps)(step) for step in range(1, (count or steps) + 1)]


def half_cosine(share: float) -> float:
    return 4.0 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [8, 8, 8, 8, 8, 8]),
        ({"lr_schedule": "constant_with_warmup", "warmup_steps": 4}, [0, 2, 4, 6, 8, 8]),
        ({"lr_schedule": "constant_with_warmup", "warmup_ratio": 0.5}, [0, 8 / 3, 16 / 3, 8, 8, 8]),
        ({"lr_schedule": "constant_with_warmup", "warmup_ratio": 0.2}, [0, 4, 8, 8, 8, 8]),  # 1.2 steps, rounded up
        ({"lr_schedule": "linear"}, [8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6]),
        ({"lr_schedule": "linear", "warmup_steps": 2}, [0, 4, 8, 6, 4, 2]),
        ({"lr_schedule": "cosine"}, [half_cosine(step / 6) for step in range(6)]),
        ({"lr_schedule": "cosine", "warmup_steps": 2}, [0, 4, *(half_cosine(step / 4) for step in range(4))]),
        (
            {"lr_schedule": "cosine_with_min_lr", "min_lr_ratio": 0.25},
            [2 + 0.75 * half_cosine(step / 6) for step in range(6)],
        ),
        ({"lr_schedule": "inverse_sqrt", "warmup_steps": 4}, [0, 2, 4, 6, 8, 8 * math.sqrt(4 / 5)]),
    ],
)
def test_the_rates_are_those_of_the_curve(keys: dict[str, Any], expected: list[float]) -> None:
    assert rates(6, **keys) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt"])
def test_the_rates_are_those_of_a_training_loop_of_transformers(name: str) -> None:
    warmup = 0 if name == "constant" else 3
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=8.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    used = []
    for _ in range(10):
        parameter.grad = torch.ones(1)
        before = parameter.item()
        optimizer.step()
        used.append(before - parameter.item())
        scheduler.step()
    assert rates(10, lr_schedule=name, warmup_steps=warmup) == pytest.approx(used, rel=1e-5)


def test_a_rate_is_a_function_of_the_step_alone() -> None:
    config = LearnerConfig.model_validate({"lr": 8.0, "lr_schedule": "cosine", "warmup_steps": 2})
    rate = learning_rates(config, 6)
    assert [rate(step) for step in (5, 1, 5, 3)] == [rate(5), rate(1), rate(5), rate(3)]
    assert learning_rates(config, 6)(5) == rate(5)
    assert rate(7) == 0.0  # after the last step
