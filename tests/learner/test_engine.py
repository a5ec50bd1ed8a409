"""ZeRO 0-3 on one and two ranks, LoRA and full: the same training as torch's AdamW over a second implementation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from common.config import ConfigError
from common.weights import WeightStore
from learner import checkpoint
from learner.engine import Engine, NonFinite, join_group
from tests.learner.fakes import tiny_config, tiny_model
from tests.learner.plain import plain_training
from tests.learner.publishing import BUCKET, LAYERS, WIDTH, big_module
from tests.learner.ranks import SETTINGS, STEPS

ROOT = Path(__file__).parents[2]


def run_on_ranks(folder: Path, world: int, cases: list[str], program: str = "ranks") -> None:
    """Run `cases` on `world` processes that meet in a file."""
    tiny_model(folder / "model")
    command = [sys.executable, "-m", f"tests.learner.{program}"]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # tensors that are freed leave the process at once
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder), *cases], cwd=ROOT, env=env, stderr=subprocess.PIPE
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=240)[1].decode()[-3000:] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(errors)


def check_case(folder: Path, case: str) -> None:
    """The case's weights against the plain training's, and that its resumed run repeated them bit for bit."""
    model = tiny_model(folder / "model")
    config = tiny_config(train=case[:-2], **SETTINGS)
    plain, start = plain_training(model, config, STEPS), plain_training(model, config, 0)
    with safe_open(folder / f"{case}.safetensors", "pt") as file:
        ours = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        assert json.loads(file.metadata()["resumed"]) is True
    assert plain.keys() == ours.keys()
    moved = max((plain[name] - start[name]).abs().max().item() for name in plain)
    assert moved > 3e-3  # 5 steps of 1e-3
    for name, tensor in plain.items():
        assert (tensor - ours[name]).abs().max().item() < 1e-5, name


def test_two_ranks_of_zero_2_train_like_one_plain_optimizer(tmp_path: Path) -> None:
    run_on_ranks(tmp_path, 2, ["full-2", "lora-2"])
    check_case(tmp_path, "full-2")
    check_case(tmp_path, "lora-2")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_trains_like_one_plain_optimizer(tmp_path: Path, world: int) -> None:
    cases = [f"{kind}-{stage}" for stage in range(4) for kind in ("full", "lora")]
    run_on_ranks(tmp_path, world, cases)
    for case in cases:
        check_case(tmp_path, case)


def found(folder: Path, case: str) -> list[dict[str, Any]]:
    """What the two ranks of `publishing` say about a case."""
    return [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2)]


def check_memory(folder: Path, stage: int) -> None:
    """Rank 0 stays within four buckets, where the whole model is twenty; what it wrote is what the ranks hold."""
    rank, _ = found(folder, f"memory-{stage}")
    assert rank["by_bucket"] < 4 * BUCKET, rank
    assert rank["at_once"] > LAYERS * 4 * WIDTH**2, rank
    store = WeightStore(folder / f"weights-{stage}")
    (first, state), (second, _) = store.load(1), store.load(2)
    assert first.digest == second.digest
    assert store.file(1).read_bytes() == store.file(2).read_bytes()
    expected = big_module().state_dict()
    assert state.keys() == expected.keys()
    assert all(state[name].equal(tensor) for name, tensor in expected.items())


def check_failure(folder: Path, stage: int) -> None:
    """Who cannot write says so; the other rank stops with it, nothing stays behind, and both can go on."""
    first, second = found(folder, f"failure-{stage}")
    assert re.match(r"StorageFailed: .*v000001.* cannot be written: File too large", first["publish"])
    assert second["publish"] == "RankFailed: rank 1: stops, since another rank failed; it says why"
    assert first["save"] == "RankFailed: rank 0: stops, since another rank failed; it says why"
    assert re.match(r"StorageFailed: .*optimizer-1.* cannot be written: File too large", second["save"])
    assert first["left"] == ["v000000"]
    assert first["versions"] == [0, 1]
    assert checkpoint.steps(folder / f"run-{stage}" / "checkpoints") == [0]


def test_ranks_publish_by_the_bucket_and_fail_together(tmp_path: Path) -> None:
    run_on_ranks(tmp_path, 2, ["memory-3", "failure-3", "failure-2"], "publishing")
    check_memory(tmp_path, 3)
    check_failure(tmp_path, 3)
    check_failure(tmp_path, 2)


@pytest.mark.slow
def test_every_stage_publishes_by_the_bucket(tmp_path: Path) -> None:
    run_on_ranks(tmp_path, 2, ["memory-0", "memory-2", "failure-0"], "publishing")
    check_memory(tmp_path, 0)
    check_memory(tmp_path, 2)
    check_failure(tmp_path, 0)


class Line(torch.nn.Module):
    """y = a x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([2.0]))
        self.frozen = torch.nn.Parameter(torch.tensor([5.0]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * x


def collected(engine: Engine, line: Line) -> dict[str, torch.Tensor]:
    return engine.collect({"a": line.a}, lambda stream: dict(stream.tensors)) or {}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_step_by_hand(stage: int) -> None:
    """Loss 3a, gradient 3: AdamW's first step is lr x sign of the gradient, 2 - 0.1 = 1.9."""
    join_group()
    line = Line()
    engine = Engine(line, tiny_config(zero_stage=stage).learner)
    norm = engine.step([lambda: engine.model(torch.tensor([3.0])).sum()], lr=0.1)
    assert norm == pytest.approx(3.0)
    assert collected(engine, line)["a"].item() == pytest.approx(1.9)
    engine.close()
    assert line.frozen.item() == 5.0


def test_micro_batches_add_up_to_the_batch() -> None:
    """Shares 3a and 1a of the mean: gradient 4, whatever the cut."""
    join_group()
    line = Line()
    engine = Engine(line, tiny_config(micro_batch=1).learner)
    assert engine.micro_batches == 2
    shares = [lambda: engine.model(torch.tensor([3.0])).sum(), lambda: engine.model(torch.tensor([1.0])).sum()]
    assert engine.step(shares, lr=0.0) == pytest.approx(4.0)
    assert line.a.item() == 2.0
    engine.close()


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_before_the_weights(stage: int, bad: float) -> None:
    join_group()
    line = Line()
    engine = Engine(line, tiny_config(zero_stage=stage).learner)
    with pytest.raises(NonFinite, match="the loss is"):
        engine.step([lambda: engine.model(torch.tensor([bad])).sum()], lr=0.1)
    assert line.a.item() == 2.0
    engine.close()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_bad_gradient_stops_too(stage: int) -> None:
    """sqrt(a - a) is 0, its gradient is infinity times zero."""
    join_group()
    engine = Engine(Line(), tiny_config(zero_stage=stage).learner)
    with pytest.raises(NonFinite, match="gradient"):
        engine.step([lambda: (engine.model(torch.zeros(1)) * 0).sqrt().sum()], lr=0.1)
    engine.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_bfloat16_keeps_float32_masters(stage: int) -> None:
    """Five steps of 0.002 from 2.0: one bfloat16 step is 0.0156, so without masters nothing would ever move."""
    join_group()
    line = Line().to(torch.bfloat16)
    engine = Engine(line, tiny_config(zero_stage=stage).learner)
    for _ in range(5):
        engine.step([lambda: engine.model(torch.ones(1, dtype=torch.bfloat16)).float().sum()], lr=0.002)
    assert engine.optimizer_state()["0.master"][0].item() == pytest.approx(1.99, abs=1e-4)
    assert engine.optimizer_state()["0.step"].item() == 5.0
    assert collected(engine, line)["a"].item() == pytest.approx(1.9922, abs=1e-3)
    engine.close()


def test_the_batch_must_divide_by_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    join_group()
    monkeypatch.setattr("learner.engine.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="pairs_per_step = 3: must divide by 2 ranks"):
        Engine(Line(), tiny_config(pairs_per_step=3).learner)


def test_several_ranks_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.engine.distributed.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="2 ranks needs an init_method"):
        join_group(0, 2)
