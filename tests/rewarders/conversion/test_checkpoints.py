"""Checkpoints are read without running their code; what is missing or unknown is named in one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.errors import ConfigError
from rewarders.conversion.checkpoints import fill, groups, read_tensors


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_is_refused(zipped: bool, tmp_path: Path) -> None:
    file, trace = tmp_path / "model.pt", tmp_path / "trace"
    content = {"model": {"a": torch.ones(1)}, "config": Malicious(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match=rf"^{file}: has more than tensors \(posix\.system\), which only running"):
        read_tensors(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # it was malicious


def test_a_malicious_plain_pickle_is_refused(tmp_path: Path) -> None:
    file, trace = tmp_path / "model.bin", tmp_path / "trace"
    file.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    with pytest.raises(ConfigError, match=r"has more than tensors"):
        read_tensors(file)
    assert not trace.exists()


def test_where_the_weights_are(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(2, dtype=torch.float16), "module.n": torch.arange(2)}
    for i, content in enumerate(
        (weights, {"state_dict": weights, "epoch": 3}, {"model": weights, "config": {"lr": 1.0}})
    ):
        torch.save(content, tmp_path / f"{i}.pth")
        found = read_tensors(tmp_path / f"{i}.pth")
        assert {name: tensor.dtype for name, tensor in found.items()} == {"a": torch.float32, "n": torch.int64}
    save_file(weights, tmp_path / "a.safetensors")
    assert set(read_tensors(tmp_path / "a.safetensors")) == {"a", "n"}


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    with pytest.raises(ConfigError, match=r"model\.pt: no such file"):
        read_tensors(file)
    file.write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"model\.pt: cannot be read as a checkpoint: ") as caught:
        read_tensors(file)
    assert "\n" not in str(caught.value)
    torch.save([torch.ones(1)], file)
    with pytest.raises(ConfigError, match=r"model\.pt: has no named tensors"):
        read_tensors(file)


def test_missing_and_unknown_weights_are_named() -> None:
    model, weights = nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    fill(model, weights, "file")
    assert model.bias.item() == 1
    with pytest.raises(ConfigError, match=r"^file: not a Linear: missing: bias; unknown: extra$"):
        fill(model, {"weight": torch.ones(1, 2), "extra": torch.ones(1)}, "file")
    with pytest.raises(ConfigError, match=r"^file: weight is \[2, 2\], expected \[1, 2\]$"):
        fill(model, weights | {"weight": torch.ones(2, 2)}, "file")
    fill(model, {"weight": torch.ones(1, 2)}, "file", optional=("bias",))
    assert model.bias.item() == 0
    assert groups(["a.b", "a.c", "d"]) == "a (2), d (1)"
