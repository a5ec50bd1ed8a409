"""What lies in a judge's model folder, opened or refused in one line: model, processors, linear layers, question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common.errors import ConfigError
from common.errors.oom import reraise_oom

QUESTION, CAPTION = "prompt.txt", "{text}"


def opened(kind: Any, path: str, **how: Any) -> Any:
    """``kind.from_pretrained(path, **how)``. `ConfigError` when there is nothing at `path`, or something else."""
    if not path:
        raise ConfigError("path: a model folder or hub id is needed")
    try:
        return kind.from_pretrained(path, **how)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reraise_oom(error)
        raise ConfigError(f"path = {path!r}: no {kind.__name__}: {_line(error)}") from None


def whole(kind: Any, path: str, **how: Any) -> Any:
    """A frozen model from safetensors, in the type it was saved in.

    `ConfigError` also for weights that are pickled, or lack, where `transformers` would draw them anew.
    """
    model, told = opened(kind, path, dtype="auto", use_safetensors=True, output_loading_info=True, **how)
    missing = sorted(told["missing_keys"])
    if missing:
        raise ConfigError(f"path = {path!r}: no {missing[0]} in it; a {kind.__name__} has one")
    return model.eval().requires_grad_(False)


def linear_layers(file: Path, width: int) -> torch.nn.Sequential:
    """The linear layers in a file, by the numbers in their names: ``[N, width]`` -> ``[N, 1]``, with nothing between.

    Dropout, which stood between them in training, does nothing here. `ConfigError` for anything else.
    """
    if not file.is_file():
        raise ConfigError(f"path = {str(file.parent)!r}: no {file.name} there; see docs/published-rewards.md")
    try:
        state = load_file(file)
        names = sorted({name.rpartition(".")[0] for name in state}, key=lambda name: int(name.rpartition(".")[2]))
        shapes = [state[f"{name}.weight"].shape for name in names]
        layers = [torch.nn.Linear(inputs, outputs) for outputs, inputs in shapes]
        for name, layer in zip(names, layers, strict=True):
            layer.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{file}: no linear layers: {_line(error)}") from None
    if not layers or layers[0].in_features != width or layers[-1].out_features != 1:
        raise ConfigError(f"{file}: layers from {width} to 1 are needed for the model beside it")
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def question(path: str, *marks: str) -> str:
    """What the model was trained to answer, from `QUESTION`: `CAPTION` and each of `marks` stand in it once."""
    file = Path(path) / QUESTION
    try:
        asked = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the question that the model was trained on is needed there: {error}") from None
    for mark in (CAPTION, *marks):
        if asked.count(mark) != 1:
            raise ConfigError(f"{file}: {mark} must stand in it once, not {asked.count(mark)} times")
    return asked


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
