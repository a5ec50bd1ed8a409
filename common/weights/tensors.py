"""Conversion between torch tensors and `SerializedTensor`, and digests of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import torch

from common.digests import Digest, digest
from common.messages import SerializedTensor, TensorEntry


def to_array(tensor: torch.Tensor) -> SerializedTensor:
    """Copy a tensor from any device into a `SerializedTensor`; bfloat16 is kept bit for bit."""
    return SerializedTensor(dtype_name(tensor), tuple(tensor.shape), bytes(tensor_bytes(tensor)))


def from_array(array: SerializedTensor, device: str | torch.device = "cpu") -> torch.Tensor:
    """Copy a `SerializedTensor` into a new tensor on `device`."""
    dtype = getattr(torch, array.dtype)
    if not array.data:
        return torch.empty(array.shape, dtype=dtype, device=device)
    return torch.frombuffer(bytearray(array.data), dtype=dtype).reshape(array.shape).to(device)


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype's name in messages: ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor. For a contiguous CPU tensor this is a view, not a copy."""
    raw: Any = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def tensor_digest(tensor: torch.Tensor) -> str:
    """`digest` of a tensor's bytes."""
    return digest(tensor_bytes(tensor))


def tensor_entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    """The manifest entry of a tensor."""
    size = tensor.numel() * tensor.element_size()
    return TensorEntry(name, dtype_name(tensor), tuple(tensor.shape), size, tensor_digest(tensor))


def whole_digest(entries: Iterable[TensorEntry]) -> str:
    """`digest` over the entries in name order. It identifies a version, a checkpoint and a policy."""
    whole = Digest()
    for entry in sorted(entries, key=lambda entry: entry.name):
        whole.update(f"{entry.name}|{entry.dtype}|{entry.shape}|{entry.digest}\n".encode())
    return whole.hexdigest()


def policy_digest(state: Mapping[str, torch.Tensor]) -> str:
    """`whole_digest` of a state dict."""
    return whole_digest(tensor_entry(name, tensor) for name, tensor in state.items())


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """blake2b-128 in hex over names, dtypes, shapes and bytes of a state dict, in name order. Used for reward heads."""
    whole = blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name]
        whole.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        whole.update(tensor_bytes(tensor))
    return whole.hexdigest()
