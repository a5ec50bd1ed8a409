"""The weight store: versions round-trip, and altered files are reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import CorruptDataError, NotFoundError
from common.files import draft_of
from common.messages import WeightVersion
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def publish(store: WeightStore, version: int = 3, state: dict[str, torch.Tensor] | None = None) -> WeightVersion:
    return store.publish(TensorStream.of(state or STATE), version=version, step=12, pushes=6, kind="full", base=version)


def test_a_version_round_trips(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "weights")
    manifest = publish(store)
    loaded, state = WeightStore(tmp_path / "weights").load(3)
    assert loaded == manifest
    assert (loaded.step, loaded.pushes, loaded.kind, loaded.base) == (12, 6, "full", 3)
    assert [(e.name, e.dtype, e.shape, e.bytes) for e in loaded.tensors] == [
        ("a", "bfloat16", (2,), 4),
        ("b", "float32", (2, 3), 24),
    ]
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert state.keys() == STATE.keys()


def test_the_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    same = publish(store, 1), publish(store, 2, dict(reversed(STATE.items())))
    assert same[0].digest == same[1].digest
    assert publish(store, 3, STATE | {"b": STATE["b"] + 1}).digest != same[0].digest


def test_an_altered_tensor_is_named(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    publish(store)
    save_file(STATE | {"b": STATE["b"] + 1}, tmp_path / "v000003" / "weights.safetensors")
    with pytest.raises(CorruptDataError, match="b differs from its digest"):
        store.load(3)
    save_file({"b": STATE["b"]}, tmp_path / "v000003" / "weights.safetensors")
    with pytest.raises(CorruptDataError, match="a is missing"):
        store.load(3)


def test_broken_files_are_named(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    publish(store)
    tensors, manifest = tmp_path / "v000003" / "weights.safetensors", tmp_path / "v000003" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["tensors"][0]["digest"] = "0" * 32
    manifest.write_text(json.dumps(data))
    with pytest.raises(CorruptDataError, match="differ from its own digest"):
        store.load(3)
    tensors.write_bytes(tensors.read_bytes()[:20])
    with pytest.raises(CorruptDataError, match=r"weights\.safetensors: cannot be read"):
        store.load(3)
    manifest.write_text("{")
    with pytest.raises(CorruptDataError, match="broken manifest"):
        store.load(3)
    with pytest.raises(NotFoundError, match=r"no weight version 9; there are \[3\]"):
        store.load(9)


def test_a_half_written_version_is_ignored_and_overwritten(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    draft_of(tmp_path / "v000003").mkdir()
    (draft_of(tmp_path / "v000003") / "manifest.json").write_text("{")
    assert store.versions() == []
    publish(store)
    publish(store, state={"c": torch.ones(1)})  # written, never announced, written again
    assert store.versions() == [3]
    assert store.load(3)[1].keys() == {"c"}
    assert [path.name for path in tmp_path.iterdir()] == ["v000003"]


def test_pruning_keeps_the_newest_and_the_base(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    for version in (0, 1, 2, 10, 11):
        publish(store, version)
    store.prune(keep=2)
    assert store.versions() == [0, 10, 11]
