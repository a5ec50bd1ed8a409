"""The training loop of the embedded models: what it minimises, how it resumes, its rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.config import ConfigError
from common.fit import Fit, fit, steps_done

PLAN = Fit(steps=8, lr=0.05, warmup=2, save_every=2)


def silent(line: str) -> None:
    del line


def train(folder: Path, log=silent, plan: Fit = PLAN) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def loss_of(step: int) -> torch.Tensor:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :1]).square().mean()

    fit("toy", model, loss_of, plan, folder, log, matrices=[model[0].weight])
    return model


def test_the_loss_falls(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tmp_path, lines.append, Fit(steps=60, lr=0.05, warmup=2, save_every=10))
    losses = [float(line.split()[4]) for line in lines]
    assert len(losses) == 6
    assert losses[-1] < 0.3 * losses[0]


def test_a_cut_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def cut(line: str) -> None:
        if "step 4/8" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", cut)
    assert steps_done(tmp_path / "cut" / "toy.safetensors") == 4
    resumed, whole = train(tmp_path / "cut"), train(tmp_path / "whole")
    assert all(a.equal(b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_finished_training_takes_no_step(tmp_path: Path) -> None:
    whole, lines = train(tmp_path), list[str]()
    again = train(tmp_path, lines.append)
    assert lines == []
    assert all(a.equal(b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ConfigError, match=r"toy\.safetensors: the training state of another model; delete it"):
        fit("toy", nn.Linear(2, 2), lambda step: torch.zeros(()), PLAN, tmp_path, silent)


def test_the_rate_rises_and_falls_to_zero() -> None:
    plan = Fit(steps=100, lr=1.0, warmup=10)
    assert plan.rate(0) == pytest.approx(0.1)
    assert plan.rate(50) == pytest.approx(0.5)
    assert plan.rate(100) == pytest.approx(0.0)
