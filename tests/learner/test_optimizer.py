"""The optimizer's update, against AdamW's equations."""

from __future__ import annotations

import pytest
import torch

from common.config import LearnerConfig
from learner.optimizer import make_optimizer


@pytest.mark.parametrize("epsilon", [None, 1e-3, 0.5])
def test_the_first_step_is_that_of_adamw_with_this_epsilon(epsilon: float | None) -> None:
    keys = {} if epsilon is None else {"adam_epsilon": epsilon}
    config = LearnerConfig.model_validate({"lr": 0.1, "weight_decay": 0.2, **keys})
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    gradient = torch.tensor([1e-3, -0.5, 1e-8])
    before, weight.grad = weight.detach().clone(), gradient
    make_optimizer([weight], config).step()
    # m / (1 - beta1) = g and v / (1 - beta2) = g^2 after one step
    expected = before * (1 - 0.1 * 0.2) - 0.1 * gradient / (gradient.abs() + (epsilon or 1e-8))
    torch.testing.assert_close(weight.detach(), expected)
