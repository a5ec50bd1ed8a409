"""Activation checkpointing: which operations are recomputed, and that results do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import ConfigError
from common.models.cogvideox import predict_v
from learner.activation_checkpointing import ATTENTION, Recompute, recompute_in
from learner.learner import Learner
from tests.support.learner.fakes import LATENT, MemoryExchange, tiny_config, tiny_model
from tests.support.tiny import TEXT_LENGTH, TEXT_WIDTH

LAYERS = 3


class Calls(TorchDispatchMode):
    """Counts calls of attention and of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attention += operation in ATTENTION
        self.products += operation is torch.ops.aten.addmm.default
        return operation(*args, **(kwargs or {}))


def passes(folder: Path, how: Recompute) -> tuple[list[torch.Tensor], Calls]:
    """Gradients of a forward and a backward pass, and what was called for them."""
    transformer = tiny_model(folder / "model", num_layers=LAYERS).load_transformer("float32", "cpu").train()
    recompute_in(transformer, how)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *LATENT, generator=generator)
    text = torch.randn(2, TEXT_LENGTH, TEXT_WIDTH, generator=generator)
    with Calls() as calls:
        predict_v(transformer, latents, latents[:, :1], torch.tensor([1, 900]), text).square().mean().backward()
    return [parameter.grad for parameter in transformer.parameters() if parameter.grad is not None], calls


@pytest.mark.parametrize(("how", "attention"), [("selective", LAYERS), ("full", 2 * LAYERS)])
def test_selective_recomputes_everything_but_attention(tmp_path: Path, how: Recompute, attention: int) -> None:
    expected, once = passes(tmp_path, "off")
    gradients, calls = passes(tmp_path, how)
    assert once.attention == LAYERS
    assert calls.attention == attention
    assert calls.products > 1.5 * once.products
    assert len(gradients) == len(expected) > 20
    assert all(one.equal(other) for one, other in zip(gradients, expected, strict=True))


@pytest.mark.parametrize(("train", "stage"), [("full", 0), ("lora", 0), ("full", 2), ("lora", 2), ("full", 3)])
def test_checkpointing_does_not_change_a_learner_step(tmp_path: Path, train: str, stage: int) -> None:
    norms = {}
    for how in ("off", "full") if stage == 3 else ("off", "selective", "full"):
        config = tiny_config(gradient_checkpointing=how, train=train, zero_stage=stage)
        learner = Learner(tiny_model(tmp_path / "model"), config, tmp_path / how)
        stats = learner.work(MemoryExchange())  # type: ignore[arg-type]
        assert stats is not None
        norms[how] = stats.grad_norm
        learner.close()
    assert norms["off"] > 0
    assert all(norm == pytest.approx(norms["off"], rel=1e-6) for norm in norms.values())


def test_selective_with_zero_3_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gradient_checkpointing = 'selective': needs zero_stage 0, 1 or 2"):
        tiny_config(gradient_checkpointing="selective", zero_stage=3)
