"""Weights & Biases sink for the curves of a run. An optional dependency: ``pip install 'douga[wandb]'``.

``WANDB_MODE=offline`` keeps everything in ``RUN/wandb/``. The id of the W&B run is in ``RUN/wandb/id``, so that a
resumed run continues its curves. W&B rejects a step that does not exceed the last one, but a resumed run repeats steps.
The step is therefore logged as a separate value and used as the x axis; repeated steps appear twice.

Errors of W&B never end a run: it continues without W&B and logs one warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from common.config import RunConfig
from common.errors import ConfigError
from common.errors.disk import writing
from common.files import write_whole

log = logging.getLogger(__name__)

FOLDER, ID = "wandb", "id"
STEP = "step"
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # timeouts: to answer at the start, to upload the rest at the end


def check_wandb(config: RunConfig) -> None:
    """Raises `ConfigError` if `metrics.wandb` is set but the package or the login is missing."""
    if not config.metrics.wandb:
        return
    if find_spec("wandb") is None:
        raise ConfigError("metrics.wandb: needs the package wandb: pip install 'douga[wandb]'")
    wandb: Any = import_module("wandb")
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise ConfigError("metrics.wandb: no login for W&B here: run `wandb login`, or set WANDB_MODE=offline")


class WandbWriter:
    """Resumes the W&B run of a run folder, or starts one. Raises `StorageError` if its id cannot be stored."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._run: Any = None
        name = _id_in(folder / FOLDER)
        try:
            self._run = _started(config, folder, name)
        except Exception as error:  # W&B raises its own errors, network errors and those of its service process
            self._give_up(error)

    def write(self, points: Mapping[str, float], step: int) -> None:
        """See `Sink`. Sent in the background."""
        try:
            if self._run is not None:
                self._run.log({STEP: step, **points})
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """See `Sink`. Waits at most `FINISH_SECONDS`."""
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        log.warning("the run continues without W&B: %s: %s", type(error).__name__, error)


def _started(config: RunConfig, folder: Path, name: str) -> Any:
    wandb: Any = import_module("wandb")
    settings = wandb.Settings(
        console="off", silent=True, save_code=False, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS
    )
    run = wandb.init(
        project=config.metrics.wandb,
        name=config.name,
        id=name,
        resume="allow",
        dir=folder,
        config=config.model_dump(mode="json"),
        settings=settings,
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def _id_in(folder: Path) -> str:
    """Returns the W&B run id stored in `folder`; creates one if there is none. Raises `StorageError`."""
    file = folder / ID
    if not file.exists():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, uuid4().hex[:12])
    return file.read_text("utf-8").strip()
