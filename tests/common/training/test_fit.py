"""The training loop of the embedded models: its loss, resuming, and the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.training.fit import FitConfig, fit, steps_done

PLAN = FitConfig(steps=8, lr=0.05, warmup=2, save_every=2)


def silent(line: str) -> None:
    del line


def train(folder: Path, log=silent, plan: FitConfig = PLAN) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def loss_of(step: int) -> torch.Tensor:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :1]).square().mean()

    fit("toy", model, loss_of, plan, folder, log, matrices=[model[0].weight])
    return model


def test_the_loss_falls(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tmp_path, lines.append, FitConfig(steps=60, lr=0.05, warmup=2, save_every=10))
    losses = [float(line.split()[4]) for line in lines]
    assert len(losses) == 6
    assert losses[-1] < 0.3 * losses[0]


def test_a_resumed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
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


def overfit(folder: Path, log=silent) -> tuple[nn.Module, list[float], float]:
    """Learns noise from three clips: what is left out gets worse before long."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    x, y = torch.randn(11, 6), torch.randn(11, 1)

    def loss(rows: slice) -> torch.Tensor:
        return (model(x[rows]) - y[rows]).square().mean()

    losses: list[float] = []

    def validate() -> float:
        losses.append(loss(slice(3, None)).item())
        return losses[-1]

    plan = FitConfig(steps=60, lr=0.05, warmup=2, save_every=5, patience=2)
    fit("toy", model, lambda step: loss(slice(3)), plan, folder, log, validate=validate)
    return model, losses, loss(slice(3, None)).item()


def test_validation_keeps_the_best_weights_and_stops(tmp_path: Path) -> None:
    lines: list[str] = []
    _, losses, kept = overfit(tmp_path, lines.append)
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 12  # the best, and as many as patience allows
    assert kept == pytest.approx(losses[best], rel=1e-5)
    assert f"(least {losses[best]:.4f} at step {5 * (best + 1)})" in lines[-1]
    _, again, kept_again = overfit(tmp_path, lines.append)
    assert (again, kept_again) == ([], kept)


def test_a_resumed_training_stops_early_at_the_same_step(tmp_path: Path) -> None:
    def cut(line: str) -> None:
        if "step 10/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overfit(tmp_path / "cut", cut)
    (resumed, _, _), (whole, losses, _) = overfit(tmp_path / "cut"), overfit(tmp_path / "whole")
    assert len(losses) > 2
    assert all(a.equal(b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert steps_done(tmp_path / "cut" / "toy.safetensors") == 5 * len(losses)


def test_a_training_without_a_finite_loss_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)

    def loss_of(step: int) -> torch.Tensor:
        return model(torch.ones(1, 2)).sum()

    with pytest.raises(ConfigError, match="toy-best: no validation loss was a finite number"):
        fit("toy", model, loss_of, PLAN, tmp_path, silent, validate=lambda: float("nan"))


def test_the_rate_rises_and_falls_to_zero() -> None:
    plan = FitConfig(steps=100, lr=1.0, warmup=10)
    assert plan.rate(0) == pytest.approx(0.1)
    assert plan.rate(50) == pytest.approx(0.5)
    assert plan.rate(100) == pytest.approx(0.0)


def test_saves_may_be_more_frequent_than_validations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, validated, lines = nn.Linear(2, 1), list[int](), list[str]()

    def validate() -> float:
        validated.append(len(validated))
        return 1.0 + len(validated)  # never better than the first

    plan = FitConfig(steps=100, lr=0.1, save_every=2, validate_every=5, patience=2)
    fit("toy", model, lambda step: model(torch.ones(2)).square().sum(), plan, tmp_path, lines.append, validate=validate)
    steps = [int(line.split()[2].split("/")[0]) for line in lines]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert len(validated) == 3
    assert ["validation" in line for line in lines] == [step % 5 == 0 for step in steps]
