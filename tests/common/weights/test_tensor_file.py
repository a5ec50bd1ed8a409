"""Streamed safetensors files: the library can read them, and would write the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from weakref import ref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.errors import ConfigError, CorruptDataError
from common.weights.tensor_file import CODES, Checker, TensorStream, file_order, file_size, write
from common.weights.tensors import policy_digest, tensor_entry

STATE = {
    'odd "name" é': torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    **{f"{rank}-{dtype}": torch.ones(3, 5, dtype=getattr(torch, dtype)) for rank, dtype in enumerate(sorted(CODES))},
}


@pytest.mark.parametrize("state", [STATE, dict(reversed(STATE.items())), {"a": torch.ones(2)}, {}])
def test_the_file_is_what_safetensors_writes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    entries = write(ours, TensorStream.of(state))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    assert file_size(entries) == ours.stat().st_size
    read = load_file(ours)
    assert read.keys() == state.keys()
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in state.items())
    assert entries == tuple(tensor_entry(name, state[name]) for name in sorted(state))


def test_the_digest_in_the_header(tmp_path: Path) -> None:
    write(tmp_path / "file", TensorStream.of(STATE), with_digest=True)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"digest": policy_digest(STATE)}
        assert file.get_tensor("transposed").equal(STATE["transposed"])


def test_write_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    layout = TensorStream.of({f"{place:02}": torch.empty(1000, device="meta") for place in range(20)}).layout
    made: list[ref[torch.Tensor]] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for entry in layout:
            assert sum(one() is not None for one in made) <= 1  # the previous one is freed when the next one exists
            tensor = torch.ones(1000)
            made.append(ref(tensor))
            yield entry.name, tensor
            del tensor

    assert len(write(tmp_path / "file", TensorStream(layout, tensors()))) == 20


def test_a_stream_that_differs_from_its_layout_is_rejected(tmp_path: Path) -> None:
    layout, tensors = TensorStream.of({"a": torch.ones(2), "b": torch.ones(3)}).layout, {"a": torch.ones(2)}
    with pytest.raises(ValueError, match="shorter"):
        write(tmp_path / "file", TensorStream(layout, tensors.items()))
    with pytest.raises(ValueError, match=r"expected .*'a'.*, got .*'b'"):
        write(tmp_path / "file", TensorStream(layout, {"b": torch.ones(3), "a": torch.ones(2)}.items()))


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ConfigError, match="a: dtype 'complex64'; allowed are int64"):
        file_order([replace(tensor_entry("a", torch.ones(1)), dtype="complex64")])


@pytest.mark.parametrize("step", [1, 7, 100, 10**6])
def test_checker_verifies_a_file_in_pieces_of_any_size(tmp_path: Path, step: int) -> None:
    """Every altered byte is found by the end of its tensor at the latest."""
    entries = write(tmp_path / "file", TensorStream.of(STATE))
    whole = (tmp_path / "file").read_bytes()
    check = Checker(entries, "here")
    for start in range(0, len(whole), step):
        check.feed(whole[start : start + step])
    check.close()
    for place in range(0, len(whole), 97):
        altered = bytearray(whole)
        altered[place] ^= 1
        with pytest.raises(CorruptDataError, match=r"^here: .* differs from its digest in the manifest"):
            Checker(entries, "here").feed(bytes(altered))
    with pytest.raises(CorruptDataError, match="here: 2 bytes more"):
        Checker(entries, "here").feed(whole + b"ab")
    check = Checker(entries, "here")
    check.feed(whole[:-1])
    with pytest.raises(CorruptDataError, match=r"here: ends within .* 1 bytes of it are missing"):
        check.close()
