"""Loads a judge's model folder: model, processors, linear layers, prompt template. Errors fit on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.models import pretrained

PROMPT_FILE, CAPTION = "prompt.txt", "{text}"


def from_pretrained(kind: Any, path: str, **kwargs: Any) -> Any:
    """Loads a processor, tokenizer or config from the folder or hub id `path`. Raises `ConfigError` if it has none."""
    return pretrained.from_pretrained(kind, path, _where(path), **kwargs)


def load_frozen(kind: Any, path: str, **kwargs: Any) -> Any:
    """Loads a frozen model from safetensors, in its saved dtype.

    Raises `ConfigError` also for pickled and for missing weights; see `common.models.pretrained.load_model`.
    """
    model, _ = pretrained.load_model(kind, path, _where(path), dtype="auto", **kwargs)
    return model.eval().requires_grad_(False)


def _where(path: str) -> str:
    if not path:
        raise ConfigError("path: must be a model folder or hub id")
    return f"path = {path!r}"


def linear_layers(file: Path, width: int) -> torch.nn.Sequential:
    """Loads the linear layers of a file, in the order of the numbers in their names: ``[N, width]`` -> ``[N, 1]``.

    Nothing comes between them: the dropout of training is inactive here. Raises `ConfigError` for any other content.
    """
    if not file.is_file():
        raise ConfigError(
            f"path = {str(file.parent)!r}: {file.name} is missing (docs/published-rewards.md says how to make it)"
        )
    try:
        state = load_file(file)
        names = sorted({name.rpartition(".")[0] for name in state}, key=lambda name: int(name.rpartition(".")[2]))
        shapes = [state[f"{name}.weight"].shape for name in names]
        layers = [torch.nn.Linear(inputs, outputs) for outputs, inputs in shapes]
        for name, layer in zip(names, layers, strict=True):
            layer.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
    except Exception as error:
        reraise_oom(error)
        raise ConfigError(f"{file}: cannot be read as linear layers: {one_line(error)}") from None
    if not layers or layers[0].in_features != width or layers[-1].out_features != 1:
        raise ConfigError(f"{file}: must lead from {width} features to 1 for the model in this folder")
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def prompt_template(path: str, *placeholders: str) -> str:
    """Returns the text of `PROMPT_FILE`, the prompt that the model was trained on. `CAPTION` and each of `placeholders`
    must occur exactly once."""
    file = Path(path) / PROMPT_FILE
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: must hold the prompt that the model was trained on: {error}") from None
    for placeholder in (CAPTION, *placeholders):
        if text.count(placeholder) != 1:
            raise ConfigError(f"{file}: must contain {placeholder} once, not {text.count(placeholder)} times")
    return text
