"""TensorBoard sink for the curves of a run.

``tensorboard --logdir RUN/tensorboard`` shows them. Optional dependency: ``pip install 'douga[tensorboard]'``.
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
    """Raises `ConfigError` if `metrics.tensorboard` is set but the package is missing."""
    if config.metrics.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("metrics.tensorboard: needs the package tensorboard: pip install 'douga[tensorboard]'")


class TensorBoardWriter:
    """Writes to a run folder. Points of earlier starts from this start's first step on are purged from the curves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._writer: SummaryWriter | None = None

    def write(self, points: Mapping[str, float], step: int) -> None:
        """See `Sink`. Raises `StorageError` if the disk fails."""
        with writing(self._folder):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional dependency

                self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=10)
            for name, value in points.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Sink`."""
        if self._writer is not None:
            self._writer.close()
