"""Reads tensors from checkpoints without running code from them, and matches them with models."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom

NESTED = ("state_dict", "model")  # where a training's checkpoint keeps the weights
NOT_WEIGHTS = ("position_ids", "attn_mask")  # constants that old files contain
GLOBAL = re.compile(r"GLOBAL (\S+)")
NAMED = 5  # names or groups of names in a message

Tensors = dict[str, torch.Tensor]


def read_tensors(file: Path) -> Tensors:
    """Returns the tensors of a safetensors file or a torch checkpoint, in float32 where they are floating-point.

    A checkpoint is a pickle. Only tensors and plain containers are read from it; anything else would have to run code,
    and is refused. Raises `ConfigError` for such files, and for those that cannot be read.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = GLOBAL.search(str(error))
        what = named[1] if named else "what is no tensor"
        raise ConfigError(
            f"{file}: has more than tensors ({what}), which only running its code could load; it was not loaded"
        ) from None
    except Exception as error:  # torch raises almost anything for a damaged file
        reraise_oom(error)
        raise ConfigError(
            f"{file}: cannot be read as a checkpoint: {type(error).__name__}: {one_line(error)}"
        ) from None
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = (
        {name: one for name, one in found.items() if isinstance(one, torch.Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise ConfigError(f"{file}: has no named tensors")
    return {str(name).removeprefix("module."): _float32(one) for name, one in tensors.items()}


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Returns the weights below `prefix`, without it; constants are left out."""
    below = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    return {name: one for name, one in below.items() if not name.endswith(NOT_WEIGHTS)}


def required(tensors: Tensors, name: str, where: str) -> torch.Tensor:
    """Returns the tensor `name`. Raises `ConfigError`, beginning with `where`, if there is none."""
    if name not in tensors:
        raise ConfigError(f"{where}: has no {name}; it has {groups(tensors)}")
    return tensors[name]


def rename(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """Returns the tensors with every key of `names` replaced by its value, in order, in their names."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for old, value in names.items():
            new = new.replace(old, value)
        renamed[new] = tensor
    return renamed


def fill(model: torch.nn.Module, tensors: Tensors, where: str, optional: tuple[str, ...] = ()) -> None:
    """Loads `tensors` into `model`. Weights that begin with one of `optional` may be missing, and are set to 0.

    Raises `ConfigError`, beginning with `where`, for missing and unknown names and other shapes.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors and not name.startswith(optional or "\0")]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        wrong = [f"{what}: {listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ConfigError(f"{where}: not a {type(model).__name__}: {'; '.join(wrong)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConfigError(f"{where}: {name} is {list(tensor.shape)}, expected {list(expected[name].shape)}")
    zeros = {name: torch.zeros_like(one) for name, one in expected.items() if name not in tensors}
    model.load_state_dict({**tensors, **zeros})


def listed(names: Iterable[str]) -> str:
    """Returns the first `NAMED` of `names` and the number of the others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return f"{', '.join(ordered[:NAMED])}{more}"


def groups(names: Iterable[str]) -> str:
    """Returns the first parts of `names`, with the number of tensors of each."""
    counts = Counter(name.split(".")[0] for name in names)
    return listed(f"{group} ({count})" for group, count in counts.items()) or "nothing"
