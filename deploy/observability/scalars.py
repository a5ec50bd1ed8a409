"""Curves of a run for people: the gauges of every step and of every reading of the guardrails, by their names.

```
RunMeter ── values, step ──> Scalars ──> TensorBoardWriter     RUN/tensorboard/   metrics.tensorboard
                                    └──> WandbWriter           W&B, RUN/wandb/    metrics.wandb
```

A value's name is that of its metric, then its labels: ``douga_probe_reward/reward/policy``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from common.config import RunConfig
from deploy.observability.exporter import Value
from deploy.observability.tensorboard import TensorBoardWriter, check_tensorboard
from deploy.observability.weights_and_biases import WandbWriter, check_wandb


class Sink(Protocol):
    """Where curves are written."""

    def write(self, points: Mapping[str, float], step: int) -> None:
        """Named values after optimizer step `step`, >= 1."""
        ...

    def close(self) -> None:
        """Everything that was written is stored."""
        ...


def check_sinks(config: RunConfig) -> None:
    """`ConfigError` for a sink that is asked for and cannot work here."""
    check_tensorboard(config)
    check_wandb(config)


class Scalars:
    """Writes the same values to every sink that the configuration asks for."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._sinks: list[Sink] = []
        if config.metrics.tensorboard:
            self._sinks.append(TensorBoardWriter(folder))
        if config.metrics.wandb:
            self._sinks.append(WandbWriter(config, folder))

    def write(self, values: Iterable[Value], step: int) -> None:
        """The values after optimizer step `step`. Raises `StorageError` where the disk refuses."""
        points = {"/".join([value.name, *value.labels.values()]): value.value for value in values}
        for sink in self._sinks:
            sink.write(points, step)

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()
