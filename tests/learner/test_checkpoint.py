"""Resuming is bit-identical, refuses damaged checkpoints, and refuses checkpoints of other runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from common.errors import ConfigError, CorruptDataError
from common.files import draft_of
from common.models.cogvideox import open_model
from learner import checkpoint
from learner.learner import Learner
from tests.support.learner.fakes import MemoryExchange, reference_digest, tiny_config, tiny_model

SETTINGS: dict[str, Any] = {
    "algorithm": {"refresh_every": 3},
    "checkpoint_every": 2,
    "lr_schedule": "cosine",
    "warmup_steps": 3,
    "adam_beta2": 0.95,
    "steps_per_push": 2,
}


def start(folder: Path, run: str = "run", **learner: Any) -> Learner:
    return Learner(tiny_model(folder / "model"), tiny_config(**(SETTINGS | learner)), folder / run)


def train(learner: Learner, exchange: Any, until: int) -> None:
    learner.resume(exchange)
    while learner.step < until:
        assert learner.work(exchange) is not None


@pytest.mark.parametrize(("kind", "stage"), [("full", 0), ("lora", 0), ("full", 1), ("full", 3)])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path, kind: str, stage: int) -> None:
    whole = start(tmp_path, "whole", train=kind, zero_stage=stage)
    train(whole, MemoryExchange(), until=6)
    dying, exchange = start(tmp_path, "dying", train=kind, zero_stage=stage), MemoryExchange()
    train(dying, exchange, until=5)  # step 5 is lost: the last checkpoint is of step 4
    dying.close()
    again = start(tmp_path, "dying", train=kind, zero_stage=stage)
    train(again, exchange, until=6)
    assert again.policy_digest() == whole.policy_digest()
    assert reference_digest(again) == reference_digest(whole)
    mine, theirs = again.engine.optimizer_state(), whole.engine.optimizer_state()
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)
    whole.close()
    again.close()


def test_the_exchange_gets_the_rollback_and_the_checkpoint(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path), MemoryExchange()
    train(learner, exchange, until=3)
    learner.close()
    again = start(tmp_path)
    assert again.resume(exchange)  # type: ignore[arg-type]
    assert again.step == 2
    again.close()
    assert exchange.log == [
        ("rollback", 0),
        ("announce", 0),
        ("commit", 1, (0, 1)),
        ("commit", 2, (2, 3)),
        ("announce", 1),
        ("mark", 2),
        ("commit", 3, (4, 5)),
        ("rollback", 2),
        ("announce", 2),  # the weights of version 1 under an id never used before
    ]
    assert [(v.version, v.step, v.pushes) for v in exchange.versions] == [(0, 0, 0), (1, 2, 1), (2, 2, 1)]
    assert exchange.versions[2].digest == exchange.versions[1].digest


def test_only_the_newest_checkpoints_stay_and_drafts_do_not_count(tmp_path: Path) -> None:
    learner, folder = start(tmp_path, keep_checkpoints=2), tmp_path / "run" / "checkpoints"
    train(learner, MemoryExchange(), until=6)
    learner.close()
    assert checkpoint.steps(folder) == [4, 6]
    draft_of(checkpoint.place(folder, 8)).mkdir()
    (draft_of(checkpoint.place(folder, 8)) / "state.json").write_text("{}")
    assert checkpoint.steps(folder) == [4, 6]


def test_settings_that_change_nothing_may_change(tmp_path: Path) -> None:
    learner = start(tmp_path)
    train(learner, MemoryExchange(), until=2)
    learner.close()
    again = start(tmp_path, checkpoint_every=6, keep_checkpoints=1, micro_batch=1, gradient_checkpointing="full")
    assert again.resume(MemoryExchange())  # type: ignore[arg-type]
    again.close()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a run that has a checkpoint of step 2."""
    learner = start(tmp_path)
    train(learner, MemoryExchange(), until=2)
    learner.close()
    return tmp_path


def refused(learner: Learner, message: str) -> None:
    exchange, before = MemoryExchange(), learner.policy_digest()
    with pytest.raises((ConfigError, CorruptDataError), match=message):
        learner.resume(exchange)  # type: ignore[arg-type]
    assert exchange.log == []
    assert learner.policy_digest() == before
    learner.close()


def test_another_runs_checkpoint_is_refused(saved: Path) -> None:
    refused(start(saved, lr=0.5), r"learner\.lr = 0\.001, this run has 0\.5")
    refused(start(saved, train="lora"), r"learner\.train = full, this run has lora")
    model = tiny_model(saved / "wider", num_attention_heads=3)
    refused(Learner(model, tiny_config(**SETTINGS), saved / "run"), "step-000002: a checkpoint of another architecture")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_another_base_model_of_equal_shape_is_refused_but_a_copy_is_accepted(tmp_path: Path, kind: str) -> None:
    learner = start(tmp_path, train=kind)
    train(learner, MemoryExchange(), until=2)
    learner.close()
    settings, run = tiny_config(**SETTINGS, train=kind), tmp_path / "run"
    differ = "step-000002: made on another base model than .* whose files differ in transformer, vae, text_encoder;"
    refused(Learner(tiny_model(tmp_path / "other", seed=1), settings, run), differ)
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    again, exchange = Learner(tiny_model(tmp_path / "copy"), settings, run), MemoryExchange()
    assert again.resume(exchange)  # type: ignore[arg-type]
    assert exchange.versions[0].model == again.progress(1, "").model == open_model(tmp_path / "model").parts
    again.close()


@pytest.mark.parametrize("part", ["policy", "reference", "optimizer-0"])
def test_broken_checkpoints_are_named(saved: Path, part: str) -> None:
    file = saved / "run" / "checkpoints" / "step-000002" / f"{part}.safetensors"
    state = load_file(file)
    name = min(state)
    save_file(state | {name: state[name] + 1}, file, {"digest": "0"})
    refused(start(saved), rf"{part}\.safetensors: differs from its digest")
    file.write_bytes(file.read_bytes()[:100])
    refused(start(saved), rf"{part}\.safetensors: cannot be read")
    (file.parent / "state.json").write_text("[")
    refused(start(saved), r"state\.json: not a checkpoint")
