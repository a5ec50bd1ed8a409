"""One rank on torch, ZeRO 0-3 on one and two: the same training as torch's AdamW over a second implementation."""

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

from common.errors import ConfigError
from common.weights.store import WeightStore
from learner import checkpoint
from learner.engines.base import Engine, NonFiniteLossError
from learner.engines.single import SingleEngine
from learner.engines.zero import ZeroEngine, join_group
from learner.learner import Learner, make_engine
from tests.support.learner.fakes import MemoryExchange, brightness, policy_state, tiny_config, tiny_model
from tests.support.learner.plain import plain_training
from tests.support.learner.publishing import BUCKET, LAYERS, WIDTH, big_module
from tests.support.learner.ranks import KINDS, SETTINGS, STEPS

ROOT = Path(__file__).parents[3]


def run_on_ranks(folder: Path, world: int, cases: list[str], program: str = "ranks") -> None:
    """Run `cases` on `world` processes that meet in a file."""
    tiny_model(folder / "model")
    command = [sys.executable, "-m", f"tests.support.learner.{program}"]
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
    chosen = {name: value for name, value in KINDS[case[:-2]].items() if name in ("train", "trainable")}
    config = tiny_config(**chosen, **SETTINGS)
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
    cases = ["full-2", "lora-2", "sharded-2", "offload-2", "part-2"]
    run_on_ranks(tmp_path, 2, cases)
    for case in cases:
        check_case(tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_trains_like_one_plain_optimizer(tmp_path: Path, world: int) -> None:
    cases = [f"{kind}-{stage}" for stage in range(4) for kind in ("full", "lora", "part")]
    cases += [f"{kind}-{stage}" for stage in (1, 3) for kind in ("sharded", "offload")]
    run_on_ranks(tmp_path, world, cases)
    for case in cases:
        check_case(tmp_path, case)


def test_a_rewards_gradient_is_the_same_on_two_ranks(tmp_path: Path) -> None:
    """Each rank denoises its own groups and scores them for their prompts; ZeRO 3 gathers weights at every step."""
    cases = ["reward-2", "reward-3"]
    run_on_ranks(tmp_path, 2, cases)
    config = tiny_config(**SETTINGS | KINDS["reward"])
    learner = Learner(tiny_model(tmp_path / "model"), config, tmp_path / "alone", rewards=brightness)
    before = policy_state(learner)
    for _ in range(STEPS):
        learner.work(MemoryExchange(gap=1.0, kept=1))  # type: ignore[arg-type]
    alone = policy_state(learner)
    learner.close()
    assert max((alone[name] - before[name]).abs().max().item() for name in alone) > 3e-3
    for case in cases:
        with safe_open(tmp_path / f"{case}.safetensors", "pt") as file:
            assert json.loads(file.metadata()["resumed"]) is True
            for name, tensor in alone.items():
                assert (tensor - file.get_tensor(name)).abs().max().item() < 1e-5, (case, name)


def found(folder: Path, case: str) -> list[dict[str, Any]]:
    """The results that the two ranks of `publishing` wrote for a case."""
    return [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2)]


def check_memory(folder: Path, stage: int) -> None:
    """Rank 0 stays within four buckets, where the whole model is twenty; the file has the weights of the ranks."""
    rank, _ = found(folder, f"memory-{stage}")
    assert rank["by_bucket"] < 4 * BUCKET, rank
    assert rank["at_once"] > 0.9 * LAYERS * 4 * WIDTH**2, rank  # the allocator has some room already
    store = WeightStore(folder / f"weights-{stage}")
    (first, state), (second, _) = store.load(1), store.load(2)
    assert first.digest == second.digest
    assert store.file(1).read_bytes() == store.file(2).read_bytes()
    expected = big_module().state_dict()
    assert state.keys() == expected.keys()
    assert all(state[name].equal(tensor) for name, tensor in expected.items())


def check_failure(folder: Path, stage: int) -> None:
    """The failing rank reports its error, the other rank stops too, no draft is left, and both can continue."""
    first, second = found(folder, f"failure-{stage}")
    assert re.match(r"StorageError: .*v000001.* cannot be written: File too large", first["publish"])
    assert (
        second["publish"] == "RankFailedError: rank 1: stopping because another rank failed; see the error of that rank"
    )
    assert first["save"] == "RankFailedError: rank 0: stopping because another rank failed; see the error of that rank"
    assert re.match(r"StorageError: .*optimizer-1.* cannot be written: File too large", second["save"])
    assert first["left"] == ["v000000"]
    assert first["versions"] == [0, 1]
    assert checkpoint.steps(folder / f"run-{stage}" / "checkpoints") == [0]


def test_ranks_publish_bucket_by_bucket_and_fail_together(tmp_path: Path) -> None:
    run_on_ranks(tmp_path, 2, ["memory-3", "failure-3", "failure-2"], "publishing")
    check_memory(tmp_path, 3)
    check_failure(tmp_path, 3)
    check_failure(tmp_path, 2)


@pytest.mark.slow
def test_every_stage_publishes_bucket_by_bucket(tmp_path: Path) -> None:
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


def single(**settings: Any) -> SingleEngine:
    return SingleEngine(Line(), tiny_config(**settings).learner)


def open_engine(module: torch.nn.Module, stage: int | None, **settings: Any) -> Engine:
    """`stage` None: torch alone."""
    rules = tiny_config(zero_stage=stage or 0, **settings).learner
    return SingleEngine(module, rules) if stage is None else ZeroEngine(module, rules)


ENGINES = [None, 0, 1, 2, 3]


def test_one_rank_without_zero_needs_no_deepspeed() -> None:
    assert isinstance(make_engine(Line(), tiny_config().learner, "cpu"), SingleEngine)
    sharded = make_engine(Line(), tiny_config(zero_stage=1).learner, "cpu")
    assert isinstance(sharded, ZeroEngine)
    sharded.close()


def test_a_closed_engine_leaves_the_process_as_it_was() -> None:
    """DeepSpeed's stage 3 replaces the linear layer of torch for good; its sums have other last bits."""
    linear = torch.nn.functional.linear
    engine = open_engine(Line(), 3)
    engine.close()
    assert torch.nn.functional.linear is linear
    one, other = (make_engine(Line(), tiny_config(zero_stage=3).learner, "cpu") for _ in range(2))
    one.close()
    other.close()  # it was opened when the layer was replaced
    assert torch.nn.functional.linear is linear


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", ENGINES)
def test_one_step_by_hand(stage: int | None, offload: bool) -> None:
    """Loss 3a, gradient 3: AdamW's first step is lr x sign of the gradient, 2 - 0.1 = 1.9."""
    if offload and stage == 0:
        with pytest.raises(ConfigError, match=r"offload_optimizer.*zero_stage 1, 2 or 3"):
            open_engine(Line(), 0, offload_optimizer=True)
        return
    line = Line()
    engine = open_engine(line, stage, offload_optimizer=offload)
    norm = engine.step([lambda: engine.model(torch.tensor([3.0])).sum()], lr=0.1)
    assert norm == pytest.approx(3.0)
    assert collected(engine, line)["a"].item() == pytest.approx(1.9)
    engine.close()
    assert line.frozen.item() == 5.0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_gradients_are_clipped(half: bool, offload: bool) -> None:
    """Gradient (3, 4) of norm 5 is scaled by 0.5 / 5; AdamW's first moment is a tenth of it."""
    line = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16 if half else torch.float32)
    engine = SingleEngine(line, tiny_config(clip_norm=0.5, offload_optimizer=offload).learner)
    given = torch.tensor([3.0, 4.0], dtype=line.weight.dtype)
    assert engine.step([lambda: engine.model(given).sum()], lr=0.0) == pytest.approx(5.0)
    moment = engine.optimizer_state()["0.exp_avg"]
    torch.testing.assert_close(moment, torch.tensor([[0.03, 0.04]]), rtol=1e-4, atol=0)
    engine.close()


@pytest.mark.parametrize("half", [False, True])
def test_micro_batches_add_up_to_the_batch(half: bool) -> None:
    """Shares 3a and 1a of the mean: gradient 4, whatever the cut; then nothing is left for the next step."""
    line = Line().to(torch.bfloat16) if half else Line()
    engine = SingleEngine(line, tiny_config(micro_batch=1).learner)
    assert engine.micro_batches == 2
    shares = [lambda x=x: engine.model(torch.tensor([x], dtype=line.a.dtype)).sum() for x in (3.0, 1.0)]
    assert engine.step(shares, lr=0.0) == pytest.approx(4.0)
    assert engine.step(shares, lr=0.0) == pytest.approx(4.0)
    assert line.a.item() == 2.0
    assert line.a.grad is None
    engine.close()


def test_many_small_gradients_are_not_lost_in_bfloat16() -> None:
    """1 and 64 times 1/512: in bfloat16 each addition to 1 would round to 1; in float32 they come to 1.125."""
    line = Line().to(torch.bfloat16)
    engine = SingleEngine(line, tiny_config(batch_size=65, micro_batch=1).learner)
    parts = [1.0] + 64 * [1 / 512]
    shares = [lambda x=x: engine.model(torch.tensor([x], dtype=torch.bfloat16)).sum() for x in parts]
    assert engine.step(shares, lr=0.0) == pytest.approx(1.125)
    engine.close()


@pytest.mark.parametrize("stage", [None, 0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_loss_leaves_the_weights_unchanged(stage: int | None, bad: float) -> None:
    line = Line()
    engine = open_engine(line, stage)
    with pytest.raises(NonFiniteLossError, match="the loss is"):
        engine.step([lambda: engine.model(torch.tensor([bad])).sum()], lr=0.1)
    assert line.a.item() == 2.0
    engine.close()


@pytest.mark.parametrize("stage", [None, 0, 1, 3])
def test_a_non_finite_gradient_leaves_the_weights_unchanged(stage: int | None) -> None:
    """sqrt(a - a) is 0, its gradient is infinity times zero."""
    engine = open_engine(Line(), stage)
    with pytest.raises(NonFiniteLossError, match="gradient"):
        engine.step([lambda: (engine.model(torch.zeros(1)) * 0).sqrt().sum()], lr=0.1)
    engine.close()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [None, 0, 3])
def test_bfloat16_keeps_float32_masters(stage: int | None, offload: bool) -> None:
    """Five steps of 0.002 from 2.0: one bfloat16 step is 0.0156, so without masters nothing would ever move."""
    if stage == 3 and offload:
        stage = 2
    line = Line().to(torch.bfloat16)
    engine = open_engine(line, stage, **({"offload_optimizer": True} if offload and stage != 0 else {}))
    for _ in range(5):
        engine.step([lambda: engine.model(torch.ones(1, dtype=torch.bfloat16)).float().sum()], lr=0.002)
    assert engine.optimizer_state()["0.master"].flatten()[0].item() == pytest.approx(1.99, abs=1e-4)
    assert engine.optimizer_state()["0.step"].item() == 5.0
    assert collected(engine, line)["a"].item() == pytest.approx(1.9922, abs=1e-3)
    engine.close()


def trained(engine: Engine, layer: torch.nn.Module, steps: int) -> dict[str, torch.Tensor]:
    """The weights after `steps` steps on the same random data, each way alike."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(16, 128, generator=generator)
        engine.step([lambda x=x: engine.model(x).square().mean()], lr=1e-2)
    tensors = dict(layer.named_parameters())
    return engine.collect(tensors, lambda stream: dict(stream.tensors)) or {}


def layer() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(128, 64)


@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_eight_bit_moments_train_nearly_like_float32(stage: int | None) -> None:
    """8192 weights have moments of one byte each; after 20 steps of 0.01 the way is the same within a tenth."""
    start = layer().weight.detach()
    exact, small = layer(), layer()
    plain, eight = open_engine(exact, None), open_engine(small, stage, optimizer="adamw_8bit")
    expected, found = trained(plain, exact, 20), trained(eight, small, 20)
    way = (expected["weight"] - start).norm()
    assert way > 4  # 8192 weights, up to 0.2 each
    assert (found["weight"] - expected["weight"]).norm() < 0.1 * way
    state = eight.optimizer_state()
    assert state["0.state1"].dtype == torch.uint8
    moments = sum(value.nbytes for name, value in state.items() if "master" not in name)
    assert moments < 3 * (8192 + 64)
    plain.close()
    eight.close()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("stage", [None, 2, 3])
def test_optimizer_state_is_restored_bit_for_bit(stage: int | None, optimizer: str) -> None:
    one = layer()
    engine = open_engine(one, stage, optimizer=optimizer)
    trained(engine, one, 3)
    weights, state = trained(engine, one, 0), engine.optimizer_state()
    expected = trained(engine, one, 2)
    engine.close()
    other = layer()
    again = open_engine(other, stage, optimizer=optimizer)
    again.assign(dict(other.named_parameters()), weights)
    again.load_optimizer_state(state)
    found = trained(again, other, 2)
    assert all(found[name].equal(expected[name]) for name in expected)
    again.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="optimizer = 'adamw_8bit': needs the package bitsandbytes"):
        single(optimizer="adamw_8bit")


def test_the_batch_must_divide_by_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    join_group()
    monkeypatch.setattr("learner.engines.zero.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="batch_size = 3: must be divisible by 2 ranks"):
        ZeroEngine(Line(), tiny_config(batch_size=3).learner)


def test_several_ranks_need_an_init_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.engines.zero.distributed.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="2 ranks needs an init_method"):
        join_group(0, 2)
