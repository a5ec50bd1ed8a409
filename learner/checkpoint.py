"""Checkpoints of the learner: safetensors and JSON in one folder per step, whole or absent.

```
checkpoints/step-000040/state.json                  step, version, pushes, seed, world, architecture, settings, model
checkpoints/step-000040/policy.safetensors          the trainable weights
checkpoints/step-000040/reference.safetensors       the frozen reference
checkpoints/step-000040/optimizer-0.safetensors     AdamW's state and master weights, one file per rank
```

Randomness needs no saving: every draw is a function of (seed, step, ordinal). The folder is written beside its place
and renamed into it, so a learner that dies while saving leaves the checkpoint before.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import ConfigError, CorruptDataError
from common.errors.disk import writing
from common.models.fingerprint import check_same_model
from common.weights.tensor_file import TensorStream, write
from common.weights.tensors import policy_digest

STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """What a checkpoint says besides tensors, and what must agree when it is loaded."""

    step: int  # optimizer steps taken
    version: int  # newest published version
    pushes: int
    seed: int
    world: int  # ranks
    architecture: str  # digest of the trainable tensors' names and shapes and the frozen ones'
    settings: dict[str, Any]  # the learner's section, less what may change between starts
    model: dict[str, str] = field(default_factory=dict)  # part of the base model -> fingerprint; empty: simulated


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lives."""
    return folder / f"step-{step:06d}"


def steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint under `folder`, rising."""
    return sorted(int(file.parent.name.removeprefix("step-")) for file in folder.glob(f"step-[0-9]*/{STATE}"))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints."""
    for step in steps(folder)[:-keep]:
        shutil.rmtree(place(folder, step))


def write_tensors(folder: Path, name: str, stream: TensorStream) -> None:
    """`name`.safetensors with its digest. `StorageError` where the disk refuses."""
    path = folder / f"{name}.safetensors"
    with writing(path):
        write(path, stream, with_digest=True)


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote. `CorruptDataError` when it is missing, cut short or altered."""
    file = folder / f"{name}.safetensors"
    try:
        with safe_open(file, "pt") as opened:
            digest = (opened.metadata() or {}).get("digest")
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CorruptDataError(f"{file}: cannot be read: {error}") from None
    if policy_digest(state) != digest:
        raise CorruptDataError(f"{file}: differs from its digest")
    return state


def write_progress(folder: Path, progress: Progress) -> None:
    """state.json: written last, it makes the folder a checkpoint."""
    (folder / STATE).write_text(json.dumps(asdict(progress), indent=1))


def read_progress(folder: Path) -> Progress:
    """What `write_progress` wrote. `CorruptDataError` when it is broken."""
    file = folder / STATE
    try:
        return Progress(**json.loads(file.read_text()))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise CorruptDataError(f"{file}: not a checkpoint: {error}") from None


def check_agrees(folder: Path, saved: Progress, now: Progress, model: str) -> None:
    """`ConfigError` naming the first thing in which the checkpoint and the run that loads it differ.

    `model` is that run's ``model.path``.
    """
    if saved.architecture != now.architecture:
        raise ConfigError(f"{folder}: a checkpoint of another architecture (other model, or other learner.lora)")
    check_same_model(str(folder), saved.model, now.model, model)
    for name, value in sorted(now.settings.items()):
        if saved.settings.get(name) != value:
            raise ConfigError(
                f"{folder}: made with learner.{name} = {saved.settings.get(name)}, this run has {value}; "
                "give it another --name or the same settings"
            )
    for name in ("seed", "world"):
        if getattr(saved, name) != getattr(now, name):
            raise ConfigError(f"{folder}: made with {name} {getattr(saved, name)}, this run has {getattr(now, name)}")
