"""The learning benchmark: what a backward pass keeps is counted once, and both kinds of steps learn."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import learning
from common.config import load_config
from common.models.cogvideox import open_model
from tests.support.tiny import tiny_pipeline


def test_saved_tensors_count_once_and_parameters_not_at_all() -> None:
    x, weight = torch.ones(100, requires_grad=True), torch.nn.Parameter(torch.ones(100))
    assert learning.saved_bytes(lambda: x * x) == 400
    assert learning.saved_bytes(lambda: x * weight) == 400
    assert learning.saved_bytes((x * x).exp) == 400
    assert learning.saved_bytes(lambda: x + x) == 0


def test_a_plain_step_lowers_its_loss(tmp_path: Path) -> None:
    model = open_model(tiny_pipeline(tmp_path))
    config = load_config(flags={"model.path": str(model.path), "learner.lr": 1e-3})
    plain, batch = learning.PlainDPO(model, config), learning.clips(config, 2)
    torch.manual_seed(0)
    losses = [plain.step(batch) for _ in range(12)]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # policy = reference: log 2
    assert min(losses[6:]) < 0.6


def given(**more: object) -> argparse.Namespace:
    size = dict.fromkeys(("frames", "height", "width"))
    asked = dict.fromkeys(("train", "pairs", "micro_batch", "checkpointing"))
    return argparse.Namespace(**({"model": "toon", "device": "cpu", "rounds": 1} | size | asked | more))


def test_the_report() -> None:
    report = learning.measure(given(), [(9, 48, 64)])
    speed, use, memory, *computed = report.rows
    assert speed.unit == "pairs/s"
    assert speed.other is not None
    assert report.aims[0].met == (report.aims[0].value >= 2)
    assert use.unit == "TFLOP/s"
    assert speed.limit is not None
    assert use.ratio is not None
    assert use.ratio.median == pytest.approx(speed.ours / speed.limit)  # on a CPU both stand on the same peak
    assert memory.other is not None
    assert memory.other > memory.ours > 1
    assert [row.unit for row in computed] == ["GB"] * len(learning.FULL_SIZES)
    assert all(row.other is not None and row.other > 5 * row.ours for row in computed)
