"""`learner.trainable`: the chosen parameters are trained, all others keep their bits, and versions stay complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import RunConfig
from common.errors import ConfigError
from common.models.trainable import trained_names
from learner.learner import Learner
from tests.support.learner.fakes import MemoryExchange, policy_state, tiny_config, tiny_model

ATTENTION = ("*.attn1.*",)
PARTS = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
OF_ATTENTION = {f"transformer_blocks.0.attn1.{part}.{kind}" for part in PARTS for kind in ("weight", "bias")}


def in_bfloat16(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})


def start(folder: Path, name: str, config: RunConfig) -> Learner:
    return Learner(tiny_model(folder / "model"), config, folder / name)


CASES = [
    ({}, "float32"),
    ({}, "bfloat16"),
    ({"gradient_checkpointing": "full"}, "float32"),
    ({"algorithm": {"name": "sft"}}, "float32"),
    ({"offload_optimizer": True}, "float32"),
    ({"zero_stage": 1}, "bfloat16"),
    ({"zero_stage": 2}, "float32"),
    ({"zero_stage": 3, "reference": "sharded"}, "float32"),
]


@pytest.mark.parametrize(("settings", "dtype"), CASES)
def test_only_the_chosen_parameters_change(tmp_path: Path, settings: dict[str, Any], dtype: str) -> None:
    config = tiny_config(trainable="*.attn1.*", weight_decay=0.1, lr=1e-2, **settings)
    config = in_bfloat16(config) if dtype == "bfloat16" else config
    kept = 1 if config.algorithm.name == "sft" else 2
    learner, exchange = start(tmp_path, "run", config), MemoryExchange(kept=kept)
    learner.resume(exchange)  # type: ignore[arg-type]
    before = policy_state(learner)
    for _ in range(3):
        learner.work(exchange)  # type: ignore[arg-type]
    after = policy_state(learner)
    assert {name for name in after if not after[name].equal(before[name])} == OF_ATTENTION
    _, published = learner.store.load(3)
    assert published.keys() == before.keys()
    assert all(published[name].equal(tensor) for name, tensor in after.items())
    trained = sum(before[name].numel() for name in OF_ATTENTION)
    state = learner.engine.optimizer_state()
    moments = sum(value.numel() for name, value in state.items() if name.endswith("exp_avg"))
    assert trained <= moments < trained + 64  # DeepSpeed pads its flat shards
    learner.close()


@pytest.mark.parametrize("stage", [0, 2])
def test_a_resumed_run_trains_the_same_parameters(tmp_path: Path, stage: int) -> None:
    config, exchange = tiny_config(trainable="*.attn1.*", zero_stage=stage), MemoryExchange()
    learner = start(tmp_path, "run", config)
    learner.resume(exchange)  # type: ignore[arg-type]
    learner.work(exchange)  # type: ignore[arg-type]
    learner.save(exchange)  # type: ignore[arg-type]
    learner.work(exchange)  # type: ignore[arg-type]
    expected = policy_state(learner)
    learner.close()
    again = start(tmp_path, "run", config)
    assert again.resume(exchange)  # type: ignore[arg-type]
    again.work(exchange)  # type: ignore[arg-type]
    assert all(tensor.equal(expected[name]) for name, tensor in policy_state(again).items())
    again.close()


def test_by_default_everything_is_trained(tmp_path: Path) -> None:
    learner = start(tmp_path, "run", tiny_config())
    assert all(parameter.requires_grad for parameter in learner.engine.module.parameters())
    learner.close()


def test_patterns_are_globs_on_whole_names() -> None:
    names = ("patch_embed.proj.weight", "transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.10.ff.net.2.bias")
    assert trained_names(names, ("*",)) == set(names)
    assert trained_names(names, ("transformer_blocks.*",)) == set(names[1:])
    assert trained_names(names, ("*.attn1.*", "patch_embed.*")) == set(names[:2])
    assert trained_names(names, ("*.1?.*",)) == {names[2]}


def test_a_pattern_without_a_parameter_is_refused(tmp_path: Path) -> None:
    message = r"learner\.trainable = 'attn': no parameter has a name like this; .* 'transformer_blocks\.\*'"
    with pytest.raises(ConfigError, match=message):
        start(tmp_path, "run", tiny_config(trainable="*.attn1.*,attn"))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainable = \*\.attn1\.\*: with train = 'lora' only adapters are trained"):
        tiny_config(trainable="*.attn1.*", train="lora")
    with pytest.raises(ConfigError, match="trainable"):
        tiny_config(trainable="")


def test_the_reference_stays_frozen_and_complete(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path, "run", tiny_config(trainable="*.attn1.*")), MemoryExchange()
    learner.work(exchange)  # type: ignore[arg-type]
    assert learner.reference.parameters.keys() == learner.reference.policy.keys()
    assert not any(tensor.requires_grad for tensor in learner.reference.parameters.values())
    learner.refresh()
    state = policy_state(learner)
    assert all(torch.equal(tensor, state[name]) for name, tensor in learner.reference.parameters.items())
    learner.close()
