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


@pytest.mark.parametrize(
    ("betas", "keys"), [((0.9, 0.999), {}), ((0.8, 0.95), {"adam_beta1": 0.8, "adam_beta2": 0.95})]
)
def test_the_second_step_is_that_of_adamw_with_these_betas(betas: tuple[float, float], keys: dict[str, float]) -> None:
    config = LearnerConfig.model_validate({"lr": 0.1, **keys})
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer, gradients = make_optimizer([weight], config), (torch.tensor([1.0, 0.5]), torch.tensor([-3.0, 0.5]))
    first, second = torch.zeros(2), torch.zeros(2)
    expected = weight.detach().clone()
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient
        optimizer.step()
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        root = (second / (1 - betas[1] ** step)).sqrt()
        expected -= 0.1 * first / (1 - betas[0] ** step) / (root + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)


def test_the_8_bit_optimizer_has_the_same_settings() -> None:
    pytest.importorskip("bitsandbytes")
    keys = {"lr": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-3, "optimizer": "adamw_8bit"}
    weight = torch.zeros(3, requires_grad=True)
    made = make_optimizer([weight], LearnerConfig.model_validate(keys)).defaults
    assert (made["lr"], tuple(made["betas"]), made["eps"]) == (0.1, (0.8, 0.95), 1e-3)
