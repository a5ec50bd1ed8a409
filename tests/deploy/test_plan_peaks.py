"""The peaks that `douga plan` states, against the bytes that torch's operations allocate and free on the way."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deploy.plan import BACKWARD, DECODE, FORWARD
from deploy.sizes import SAVED, SAVED_OUTSIDE, family_sizes
from tests.deploy.test_plan import predicted, small

SIDE = 32  # of the latents: so many tokens that one weight's gradient is small beside them
LAYERS, HEADS, TOKENS = 2, 4, 8 + 3 * (SIDE // 2) ** 2
UNIT = 2 * TOKENS * HEADS * 64 * 4  # S d b of two clips


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make within the block, less those of `own`."""

    def __init__(self, *own: torch.Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = dict.fromkeys((tensor.untyped_storage()._cdata for tensor in own), 0)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, address: int) -> None:
        self.now -= self._sizes.pop(address, 0)


def transformer(checkpointed: bool = False) -> Any:
    """With gradients that are there already: a step's own are not activations."""
    module, _ = small(LAYERS, checkpointed=checkpointed, side=SIDE)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return module


def test_a_forward_pass_without_gradient_holds_no_more_than_stated() -> None:
    module = transformer()
    with torch.no_grad(), Allocations(*module.parameters(), *module.buffers()) as seen:
        predicted(module, 2, SIDE)
    assert seen.peak / UNIT == pytest.approx(FORWARD, rel=0.1)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_training_pass_holds_what_is_saved_a_block_and_little_more(checkpointed: bool) -> None:
    module = transformer(checkpointed)
    with Allocations(*module.parameters(), *module.buffers()) as seen:
        predicted(module, 2, SIDE).sum().backward()
    blocks = LAYERS + SAVED["full"] if checkpointed else LAYERS * SAVED["full"]
    stated = blocks + SAVED_OUTSIDE["full"] + BACKWARD
    assert seen.peak / UNIT == pytest.approx(stated, rel=0.1)


@pytest.mark.parametrize(("tiling", "places"), [(False, 480 * 720), (True, 240 * 360)])
def test_decoding_holds_what_is_stated_with_room_for_workspace(tiling: bool, places: int) -> None:
    sizes = family_sizes("5b-i2v")
    kinds = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX(**sizes.vae, **kinds)
        if tiling:
            vae.enable_tiling()
        with torch.no_grad(), Allocations(*vae.parameters()) as seen:
            vae.decode(torch.empty(1, 16, 5, 60, 90))
    counted = seen.peak / (9 * places * 256 * 4)  # nine frames in the widest layer at full size
    assert counted == pytest.approx(DECODE - 2, rel=0.05)
