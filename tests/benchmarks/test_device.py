"""Measurements of a device: memory per variant, counted rounds, and required operations."""

from __future__ import annotations

import pytest
import torch

from benchmarks import device
from benchmarks.device import Variant, operations, stated_peak
from benchmarks.harness import Report, as_json
from common.config import load_config
from deploy.planning.model_sizes import family_sizes

MIB = 1 << 20


def test_the_first_round_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    way = Variant("cpu", lambda: now)

    def work(clock: list[float]) -> None:
        clock[0] += 2

    now[0] += 100  # between rounds
    for _ in range(3):
        way.round(work)
        now[0] += 100
    assert way.rates(8) == [4, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_variant_counts_only_its_own_memory() -> None:
    def tensor(size: int) -> torch.Tensor:
        return torch.empty(size * MIB, dtype=torch.uint8, device="cuda:0")

    first, second = Variant("cuda:0", lambda: [tensor(64)]), Variant("cuda:0", lambda: [tensor(8)])
    first.round(lambda kept: kept.append(tensor(32)))
    second.round(lambda kept: tensor(16))
    first.round(lambda kept: tensor(4))
    assert (first.held, first.peak) == (96 * MIB, 100 * MIB)
    assert (second.held, second.peak) == (8 * MIB, 24 * MIB)


def test_recomputation_does_not_count() -> None:
    """Of two clips a pair: forward by policy and reference, backward twice a forward; adapters spare the matrices'
    weights' gradients."""
    sizes = family_sizes("5b-i2v")
    size = {"model.frames": 49, "model.height": 480, "model.width": 720, "learner.batch_size": 1}
    matrices, attention = sizes.forward_flops(17776)

    def step(**more: object) -> float:
        return operations(sizes, load_config(flags=size | more))[1]

    lora = {"learner.train": "lora"}
    assert step(**lora) == pytest.approx(2 * (3 * matrices + 4 * attention))
    assert step(**lora, **{"learner.gradient_checkpointing": "selective"}) == step(**lora)
    assert step() == pytest.approx(2 * (4 * matrices + 4 * attention))


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [("NVIDIA H200", 989), ("NVIDIA A800-SXM4-80GB", 312), ("NVIDIA GeForce RTX 4090", 165), ("Tesla T4", None)],
)
def test_a_gpu_s_peak_is_its_data_sheet_s(name: str, teraflops: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = stated_peak("cuda:0")
    assert (found and found.teraflops) == teraflops
    assert stated_peak("cpu") is None


def test_a_result_names_the_packages_that_are_installed() -> None:
    kept = as_json(Report("sampling", [], [], ("torch", "no-such-package")))
    assert kept["versions"]["torch"] == torch.__version__
    assert "no-such-package" not in kept["versions"]
    assert "gpu" not in kept["machine"]
