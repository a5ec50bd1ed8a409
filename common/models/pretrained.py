"""Loads pretrained models. Weights that a model's files lack are refused, never drawn at random.

`transformers` and `diffusers` initialise such weights at random and only log a warning, so every process would have
another model. All models that douga loads from a folder or the hub go through this module; processors and tokenizers,
which have no weights, use `from_pretrained`. Weights that a file has beyond the model's are ignored: they belong to
parts that are not used, such as a classifier. The parts of a policy are checked more strictly, in `pipeline_folder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import HfApi, snapshot_download
from transformers.utils import logging as transformers_logging

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.files import exists

ASK_SECONDS = 5.0  # for the hub's answer whether it has a model
NAMED = 3  # missing weights that an error names

Selection = Callable[[Any, Set[str]], Set[str]]
"""(model, names of missing weights) -> those that the caller needs."""


def from_pretrained(kind: Any, place: str | Path, where: str, what: str = "", **options: Any) -> Any:
    """Returns ``kind.from_pretrained(place, **options)``.

    Raises `ConfigError`, "`where`: cannot be loaded as `what`", if that fails; `what` defaults to the class's name.
    """
    _check_place(str(place), where)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # loading bars would break our progress lines
    try:
        return kind.from_pretrained(place, **options)
    except Exception as error:  # the libraries raise almost anything for a damaged file
        reraise_oom(error)
        raise ConfigError(f"{where}: cannot be loaded as {what or kind.__name__}: {one_line(error)}") from None


def _check_place(place: str, where: str) -> None:
    """Raise `ConfigError` if `place` is no folder, not in the hub's cache, and not on the hub, if one can be reached.

    The libraries try again for a minute where no hub answers, and print a line each time.
    """
    if exists(Path(place)):
        return
    try:
        snapshot_download(place, local_files_only=True)
    except (OSError, ValueError):  # not in the cache; not a valid id
        try:
            HfApi().model_info(place, timeout=ASK_SECONDS)
        except Exception as error:  # of the hub, its HTTP client, or the proxy
            raise ConfigError(f"{where}: no such folder, and not on the hub: {one_line(error)}") from None


def load_model(
    kind: Any, place: str | Path, where: str, needed: Selection = lambda _, missing: missing, **options: Any
) -> tuple[Any, frozenset[str]]:
    """Loads a model from safetensors.

    Returns the model and the names of its missing weights, all of them random and not `needed`. Raises `ConfigError`,
    beginning with `where`, if it cannot be loaded, if a shape differs, or if `needed` weights are missing.
    """
    model, loading = from_pretrained(kind, place, where, use_safetensors=True, output_loading_info=True, **options)
    missing = frozenset(loading["missing_keys"])
    if lacking := sorted(needed(model, missing)):
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        raise ConfigError(
            f"{where}: not a complete {type(model).__name__}: weights missing: {', '.join(lacking[:NAMED])}{more}"
        )
    return model, missing


def check_weights(model: torch.nn.Module, where: str) -> None:
    """Raise `ConfigError`, beginning with `where`, for weights that no training leaves.

    These are NaN and infinities, e.g. of values too large for their dtype, and matrices of zeros: an interrupted
    download, and a copy of a sparse file, may have the right size and zeros where nothing was written.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        least, most = tensor.aminmax()
        if not (least.isfinite() and most.isfinite()):
            raise ConfigError(f"{where}: {name} has values in {tensor.dtype} that are NaN or infinite")
        if tensor.ndim > 1 and least == most == 0:
            raise ConfigError(
                f"{where}: {name} is all zeros, as in a file that was not written whole; download it again"
            )


def move(model: Any, device: torch.device | str) -> Any:
    """`model`, moved to `device`. Raises `ConfigError` if this machine or this build of torch has no such device."""
    try:
        return model.to(device)
    except Exception as error:  # AssertionError for a build without CUDA, RuntimeError for an unknown device
        reraise_oom(error)
        raise ConfigError(f"model.device = {str(device)!r}: {one_line(error)}; allowed here: {_devices()}") from None


def _devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
