"""Between torch tensors and the wire's `Array`s, and digests of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch

from common.messages import Array


def to_array(tensor: torch.Tensor) -> Array:
    """Copy a tensor of any device to an `Array`; bfloat16 is kept bit for bit."""
    host = tensor.detach().to("cpu").contiguous()
    return Array(str(host.dtype).removeprefix("torch."), tuple(host.shape), tensor_bytes(host))


def from_array(array: Array, device: str | torch.device = "cpu") -> torch.Tensor:
    """The tensor of an `Array`, in its own memory."""
    dtype = getattr(torch, array.dtype)
    if not array.data:
        return torch.empty(array.shape, dtype=dtype, device=device)
    return torch.frombuffer(bytearray(array.data), dtype=dtype).reshape(array.shape).to(device)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The raw bytes of a contiguous CPU tensor."""
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor_digest(tensor: torch.Tensor) -> str:
    """blake2b-128 of a tensor's bytes, hex."""
    return blake2b(tensor_bytes(tensor), digest_size=16).hexdigest()


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """blake2b-128 over names, dtypes, shapes and bytes of a state dict, in name order, hex."""
    whole = blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name]
        whole.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        whole.update(tensor_bytes(tensor))
    return whole.hexdigest()
