"""Checkpoints of the learner: one folder per step with safetensors and JSON, written atomically.

```
checkpoints/step-000040/state.json                  step, version, pushes, seed, world, architecture, settings, model
checkpoints/step-000040/policy.safetensors          the trainable weights
checkpoints/step-000040/reference.safetensors       the frozen reference
checkpoints/step-000040/optimizer-0.safetensors     AdamW state and master weights, one file per rank
```

There is no RNG state to save: every draw is a function of (seed, step, ordinal). The folder is written under a draft
name and then renamed, so a learner that dies while saving leaves the previous checkpoint intact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import ConfigError, CorruptDataError
from common.errors.disk import writing
from common.files import draft_of, new_folder
from common.models.fingerprint import check_same_model
from common.weights.tensor_file import TensorStream, write
from common.weights.tensors import policy_digest
from learner.engines.base import Engine

STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """The content of state.json: the progress of training, and settings that must match when it is loaded."""

    step: int  # optimizer steps taken
    version: int  # newest published version
    pushes: int  # weight pushes so far: step // learner.steps_per_push
    seed: int
    world: int  # ranks
    architecture: str  # digest of the names and shapes of all tensors, before adapters
    settings: dict[str, Any]  # config values that must not change between starts, by key
    model: dict[str, str] = field(default_factory=dict)  # fingerprint by part of the base model; empty: simulated


def place(folder: Path, step: int) -> Path:
    """Path of the checkpoint of `step`."""
    return folder / f"step-{step:06d}"


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints under `folder`, ascending."""
    return sorted(int(file.parent.name.removeprefix("step-")) for file in folder.glob(f"step-[0-9]*/{STATE}"))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints."""
    for step in steps(folder)[:-keep]:
        shutil.rmtree(place(folder, step))


def save(folder: Path, progress: Progress, engine: Engine, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write the checkpoint of `progress`: the tensors of `parts` by file name, and every rank's optimizer state.

    Rank 0 creates the folder and renames it when all ranks have written their files. Collective.
    """
    final = place(folder, progress.step)
    draft = draft_of(final)
    with ExitStack() as stack:
        with engine.agreed():
            if engine.rank == 0:
                stack.enter_context(new_folder(final))
        for name, tensors in parts.items():
            engine.collect(tensors, partial(write_tensors, draft, name))
        with engine.agreed():
            write_tensors(draft, f"optimizer-{engine.rank}", TensorStream.of(engine.optimizer_state()))
        with engine.agreed():
            if engine.rank == 0:
                write_progress(draft, progress)
                stack.close()  # renames the draft to the final folder


def write_tensors(folder: Path, name: str, stream: TensorStream) -> None:
    """Write `name`.safetensors with a digest. Raises `StorageError` if a disk operation fails."""
    path = folder / f"{name}.safetensors"
    with writing(path):
        write(path, stream, with_digest=True)


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the file of `write_tensors`. Raises `CorruptDataError` if it is missing, truncated or altered."""
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
    """Write state.json. It must be written last: it marks the checkpoint as complete."""
    (folder / STATE).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """Read state.json. Raises `CorruptDataError` if it is missing or invalid."""
    file = folder / STATE
    try:
        return Progress(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptDataError(f"{file}: not a checkpoint: {error}") from None


def check_agrees(folder: Path, saved: Progress, now: Progress, model: str) -> None:
    """Raises `ConfigError` with the first difference between the checkpoint and the run that loads it.

    `model` is the ``model.path`` of that run.
    """
    if saved.architecture != now.architecture:
        raise ConfigError(f"{folder}: a checkpoint of another architecture (different model or learner.lora)")
    check_same_model(str(folder), saved.model, now.model, model)
    for name, value in sorted(now.settings.items()):
        if saved.settings.get(name) != value:
            raise ConfigError(
                f"{folder}: made with {name} = {saved.settings.get(name)}, this run has {value}; "
                "give it another --name or the same settings"
            )
    for name in ("seed", "world"):
        if getattr(saved, name) != getattr(now, name):
            raise ConfigError(f"{folder}: made with {name} {getattr(saved, name)}, this run has {getattr(now, name)}")
