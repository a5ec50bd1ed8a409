"""The record of an optimizer step, as a learner reports it."""

from __future__ import annotations

from common.messages import StepStats

STATS = StepStats(
    step=3,
    loss=0.5,
    grad_norm=1.5,
    lr=1e-5,
    lag=0.5,
    lag_max=1,
    reward=0.6,
    seconds=2.5,
    refreshed=True,
    pushed=True,
    metrics={
        "dpo_logits": 0.1,
        "reward_margin": 0.2,
        "chosen_error": -0.01,
        "rejected_error": 0.02,
        "accuracy": 0.75,
        "gap": 0.05,
    },
)
