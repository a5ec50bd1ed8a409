"""Checks a part's weight files against its architecture before they are loaded. Reads headers only, so it is quick.

The libraries choose silently where a folder has two checkpoints, ignore tensors that they do not know, and draw those
that are missing at random. Here a part has exactly one checkpoint in safetensors, with the tensors of its architecture:

| allowed | refused |
|---|---|
| `STEM.safetensors`, or `STEM.safetensors.index.json` and the shards it names | both, or any other weight file beside |
| float64, float32, float16, bfloat16, mixed: they are converted to `model.dtype` | integers and 8-bit floats |
| one of two tied tensors (T5's `shared`, `encoder.embed_tokens`) | other missing or unexpected tensors, other shapes |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from common.errors import ConfigError
from common.errors.messages import one_line
from common.models.json_files import check_pointer, read_json

NAMED = 3  # tensors that an error names
DTYPES = ("F64", "F32", "F16", "BF16")
TO_SAFETENSORS = (
    "douga never unpickles weights; convert the pipeline once with diffusers: "
    "DiffusionPipeline.from_pretrained(DIR).save_pretrained(NEW_DIR)"
)


class Header(NamedTuple):
    """What a safetensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


def check_checkpoint(folder: Path, stem: str, model: torch.nn.Module) -> None:
    """Checks that the part in `folder` has one checkpoint, named `stem`, with exactly the tensors of `model`.

    Args:
        model: the part's architecture; it may be on the meta device.

    Raises:
        ConfigError: names the first file or tensors that are missing, unexpected, damaged, or of another shape or type.
    """
    found = _headers(_weight_files(folder, stem))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check_names(folder, model, expected, found)
    for name, header in found.items():
        if name not in expected:
            continue  # a tensor that the class says to ignore
        if header.shape != expected[name]:
            shapes = f"is {list(header.shape)}, config.json needs {list(expected[name])}"
            raise ConfigError(f"{folder}: config.json and weights contradict each other: {name} {shapes}")
        if header.dtype not in DTYPES:
            raise ConfigError(f"{folder}: {name} has dtype {header.dtype}; allowed are {', '.join(DTYPES)}")


def _check_names(
    folder: Path, model: torch.nn.Module, expected: Mapping[str, Any], found: Mapping[str, Header]
) -> None:
    kind = type(model).__name__
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}  # a second name -> the first one
    given = {tied.get(name, name) for name in found}
    if missing := sorted(expected.keys() - tied.keys() - given):
        raise ConfigError(f"{folder}: not a complete {kind}: weights missing: {_listed(missing)}")
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    unexpected = [name for name in found if name not in expected and not any(re.search(p, name) for p in ignored)]
    if unexpected:
        raise ConfigError(f"{folder}: weights that a {kind} of this config.json has not: {_listed(sorted(unexpected))}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _weight_files(folder: Path, stem: str) -> dict[Path, set[str] | None]:
    """The files of the part's only checkpoint, each with the tensors that the index says are in it (None: no index)."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    visible = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    pickled = [name for name in visible if re.search(r"model.*\.(bin|pt|pth|ckpt)(\.index\.json)?$", name)]
    weights = [name for name in visible if name.endswith((".safetensors", ".safetensors.index.json"))]
    for name in visible:
        if not (folder / name).exists():
            raise ConfigError(f"{folder / name}: a link to a file that is not there")
    if not single.is_file() and not index.is_file():
        if pickled:
            raise ConfigError(f"{folder}: only pickled weights ({_listed(pickled)}); {TO_SAFETENSORS}")
        named = f"; rename {_listed(weights)} if that is it" if weights else ""
        raise ConfigError(f"{folder}: no {single.name} in it{named}")
    files: dict[Path, set[str] | None] = {single: None} if single.is_file() else dict(_shards(index))
    used = {file.name for file in files} | ({single.name} if single.is_file() else {index.name})
    if beside := [name for name in [*weights, *pickled] if name not in used]:
        own = single.name if single.is_file() else index.name
        raise ConfigError(f"{folder}: two checkpoints: {own} and {_listed(beside)}; keep one of them in this folder")
    return files


def _shards(index: Path) -> dict[Path, set[str]]:
    """The files that an index names, with their tensors."""
    found = read_json(index).get("weight_map")
    places: dict[str, Any] = found if isinstance(found, dict) else {}
    names = list(places.values())
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ConfigError(f"{index}: weight_map must name a file in this folder for each tensor")
    files = {index.parent / name: {key for key in places if places[key] == name} for name in sorted(set(names))}
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        raise ConfigError(f"{index}: names files that are not there: {_listed(lacking)}")
    return files


def _headers(files: Mapping[Path, set[str] | None]) -> dict[str, Header]:
    found: dict[str, Header] = {}
    for file, named in files.items():
        own = read_header(file)
        if named is not None and own.keys() != named:
            wrong = sorted(own.keys() ^ named)
            raise ConfigError(f"{file}: the index and this file disagree on {_listed(wrong)}")
        found |= own
    return found


def read_header(file: Path) -> dict[str, Header]:
    """Shapes and dtypes of a safetensors file's tensors. Raises `ConfigError` for a truncated or damaged file."""
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {name: Header(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except Exception as error:  # the library raises its own class, OSError and others
        check_pointer(file)
        raise ConfigError(f"{file}: cannot be loaded: {one_line(error)}") from None
