"""TensorBoard as a sink of a run's curves.

``tensorboard --logdir RUN/tensorboard`` shows them. It is an extra: ``pip install 'douga[tensorboard]'``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import RunConfig
from common.errors import ConfigError
from common.errors.disk import writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


def check_tensorboard(config: RunConfig) -> None:
    """`ConfigError` when it is asked for and cannot be had."""
    if config.metrics.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("metrics.tensorboard: needs the package tensorboard: pip install 'douga[tensorboard]'")


class TensorBoardWriter:
    """Writes into the folder of a run. What an earlier start wrote from this one's first step on is not shown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._writer: SummaryWriter | None = None

    def write(self, points: Mapping[str, float], step: int) -> None:
        """See `Sink`. Raises `StorageError` where the disk refuses."""
        with writing(self._folder):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

                self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=10)
            for name, value in points.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """All is on the disk."""
        if self._writer is not None:
            self._writer.close()
