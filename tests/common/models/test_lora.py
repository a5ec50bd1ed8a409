"""Adapters: fresh ones change nothing, names are the layers' own, only the chosen one learns."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from common.config import LoraConfig
from common.errors import ConfigError
from common.models.lora import (
    activate,
    adapter_parameters,
    adapter_state,
    inject_lora,
    load_adapter_state,
    using_adapter,
)

LORA = LoraConfig(rank=2, alpha=4.0)


def transformer() -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=12,
        num_layers=1,
        sample_width=8,
        sample_height=6,
        sample_frames=9,
        max_text_seq_length=8,
    )


def run(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    latents, text = torch.randn(1, 3, 8, 6, 8, generator=generator), torch.randn(1, 8, 12, generator=generator)
    return model(latents, text, torch.tensor([500]), return_dict=False)[0]


def disturbed(model: torch.nn.Module, name: str, value: float) -> dict[str, torch.Tensor]:
    state = {key: torch.full_like(tensor, value) for key, tensor in adapter_state(model, name).items()}
    load_adapter_state(model, state, name)
    return state


def test_a_fresh_adapter_is_the_base_model_bit_for_bit() -> None:
    model = transformer()
    before = run(model)
    inject_lora(model, LORA, seed=1)
    assert torch.equal(run(model), before)


def test_names_are_the_layers_own_and_only_the_adapter_learns() -> None:
    model = transformer()
    inject_lora(model, LORA, seed=1)
    state = adapter_state(model)
    layers = ("to_q", "to_k", "to_v", "to_out.0")
    assert set(state) == {f"transformer_blocks.0.attn1.{layer}.lora_{m}.weight" for layer in layers for m in "AB"}
    assert state["transformer_blocks.0.attn1.to_q.lora_A.weight"].shape == (2, 32)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 8
    assert all(".lora_" in name for name in learning)


def test_the_start_is_a_function_of_the_seed_alone() -> None:
    states = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        model = transformer()
        torch.manual_seed(noise)
        inject_lora(model, LORA, seed=seed)
        states.append(adapter_state(model)["transformer_blocks.0.attn1.to_k.lora_A.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert states[0].abs().max() <= 1 / 32**0.5


def test_scale_is_alpha_over_rank() -> None:
    """With A = B = 0.1 a layer gains (4 / 2) x 0.1 x 2 x 0.1 x sum(x) on every output."""
    model = transformer()
    inject_lora(model, LORA, seed=1)
    disturbed(model, "policy", 0.1)
    layer = model.transformer_blocks[0].attn1.to_q  # type: ignore[union-attr]
    x = torch.ones(1, 32)
    gained = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(gained, torch.full((1, 32), 2 * 0.1 * 2 * 0.1 * 32))


def test_two_adapters_act_one_at_a_time_and_only_the_policy_keeps_its_gradient() -> None:
    model = transformer()
    base = run(model)
    inject_lora(model, LORA, 1, "reference")
    inject_lora(model, LORA, 1, "policy")
    activate(model, "policy", trainable="policy")
    disturbed(model, "policy", 0.5)
    changed = run(model)
    with using_adapter(model, "reference"):
        assert torch.equal(run(model), base)
        assert all(parameter.requires_grad for parameter in adapter_parameters(model, "policy").values())
    assert torch.equal(run(model), changed)
    assert not torch.equal(changed, base)
    assert not any(parameter.requires_grad for parameter in adapter_parameters(model, "reference").values())


def test_a_state_loads_into_another_model() -> None:
    one, other = transformer(), transformer()
    inject_lora(one, LORA, seed=1)
    inject_lora(other, LORA, seed=2)
    load_adapter_state(other, disturbed(one, "policy", 0.3))
    assert torch.equal(run(one), run(other))


def test_wrong_input_is_named() -> None:
    model = transformer()
    with pytest.raises(ConfigError, match="no adapter 'policy'"):
        adapter_state(model)
    with pytest.raises(ConfigError, match=r"learner\.lora\.targets = \['to_x'\]"):
        inject_lora(model, LoraConfig(targets=("to_x",)), seed=1)
    inject_lora(model, LORA, seed=1)
    state = adapter_state(model)
    first = min(state)
    with pytest.raises(ConfigError, match=f"{first} is missing"):
        load_adapter_state(model, {name: tensor for name, tensor in state.items() if name != first})
    with pytest.raises(ConfigError, match="x is not a tensor of this adapter"):
        load_adapter_state(model, state | {"x": torch.zeros(1)})
    with pytest.raises(ConfigError, match=rf"{first} is \[1\]"):
        load_adapter_state(model, state | {first: torch.zeros(1)})
