"""The peaks that `douga plan` states, against the bytes that torch's operations allocate and free on the way."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deploy.planning.memory import BACKWARD, DECODE, FORWARD
from deploy.planning.model_sizes import SAVED, SAVED_OUTSIDE, family_sizes
from learner.activation_checkpointing import Recompute
from learner.engines.single import SingleEngine
from learner.engines.zero import ZeroEngine
from tests.deploy.planning.test_plan import predicted, small
from tests.support.learner.fakes import tiny_config

SIDE = 32  # of the latents: so many tokens that the gradient of one weight is negligible
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


def transformer(recompute: Recompute = "off") -> Any:
    """Gradients exist already, so that the step allocates none."""
    module, _ = small(LAYERS, recompute=recompute, side=SIDE)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return module


def test_a_forward_pass_without_gradient_holds_no_more_than_stated() -> None:
    module = transformer()
    with torch.no_grad(), Allocations(*module.parameters(), *module.buffers()) as seen:
        predicted(module, 2, SIDE)
    assert seen.peak / UNIT == pytest.approx(FORWARD, rel=0.1)


@pytest.mark.parametrize(("recompute", "kept"), [("off", 0), ("selective", 2), ("full", 1)])
def test_a_training_pass_holds_what_is_saved_a_block_and_little_more(recompute: Recompute, kept: int) -> None:
    module = transformer(recompute)
    with Allocations(*module.parameters(), *module.buffers()) as seen:
        predicted(module, 2, SIDE).sum().backward()
    blocks = kept * LAYERS + SAVED["full"] if kept else LAYERS * SAVED["full"]
    stated = blocks + SAVED_OUTSIDE["full"] + BACKWARD
    assert seen.peak / UNIT == pytest.approx(stated, rel=0.1)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (0, "bfloat16"), (1, "bfloat16"), (2, "bfloat16")])
def test_an_optimizer_step_holds_gradients_buffers_and_no_more(stage: int, dtype: str) -> None:
    """Wide layers and one row of data: activations are negligible beside half a million weights."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(8)))
    module, count = module.to(getattr(torch, dtype)), 8 * 256 * 256
    rules = tiny_config(zero_stage=stage).learner
    engine = ZeroEngine(module, rules) if stage else SingleEngine(module, rules)

    def step() -> None:
        engine.step([lambda: engine.model(torch.ones(1, 256, dtype=getattr(torch, dtype))).float().mean()], 1e-3)

    step()  # creates the moments
    peaks = []
    for _ in range(3):
        with Allocations(*module.parameters()) as seen:
            step()
        peaks.append(seen.peak)
    engine.close()
    stated = 2 + 2 + 4 if stage else 4  # gradients and bucket in bfloat16, gradients in float32
    # The least: Gloo's thread may keep the bucket a moment longer than the reduction, on a busy machine.
    assert min(peaks) / count == pytest.approx(stated, rel=0.1)


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
