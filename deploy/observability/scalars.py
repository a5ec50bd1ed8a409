"""Curves of a run for TensorBoard and W&B: the gauges of every optimizer step and every guardrail reading.

```
RunMetrics ── samples, step ──> Scalars ──> TensorBoardWriter     RUN/tensorboard/   metrics.tensorboard
                                       └──> WandbWriter           W&B, RUN/wandb/    metrics.wandb
```

A curve is named after its metric, followed by its label values: ``douga_probe_reward/reward/policy``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from common.config import RunConfig
from deploy.observability.exporter import GaugeSample
from deploy.observability.tensorboard import TensorBoardWriter, check_tensorboard
from deploy.observability.weights_and_biases import WandbWriter, check_wandb


class Sink(Protocol):
    """Destination of curves."""

    def write(self, points: Mapping[str, float], step: int) -> None:
        """Writes name -> value after optimizer step `step`, >= 1."""
        ...

    def close(self) -> None:
        """Flushes everything that was written."""
        ...


def check_sinks(config: RunConfig) -> None:
    """Raises `ConfigError` for a configured sink that cannot be used here."""
    check_tensorboard(config)
    check_wandb(config)


class Scalars:
    """Writes the same values to every configured sink."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._sinks: list[Sink] = []
        if config.metrics.tensorboard:
            self._sinks.append(TensorBoardWriter(folder))
        if config.metrics.wandb:
            self._sinks.append(WandbWriter(config, folder))

    def write(self, values: Iterable[GaugeSample], step: int) -> None:
        """Writes the values after optimizer step `step`. Raises `StorageError` if the disk fails."""
        points = {"/".join([value.name, *value.labels.values()]): value.value for value in values}
        for sink in self._sinks:
            sink.write(points, step)

    def close(self) -> None:
        """Closes all sinks."""
        for sink in self._sinks:
            sink.close()
