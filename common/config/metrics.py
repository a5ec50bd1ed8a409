"""``[metrics]``: exporters and TensorBoard."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section


class MetricsConfig(Section):
    """Monitoring: a Prometheus exporter in every process, TensorBoard files, Weights & Biases."""

    enabled: bool = Field(
        default=True, description="serve metrics over HTTP from every process; RUN/prometheus lists the targets"
    )
    port: int = Field(
        default=0, ge=0, le=65535, description="first port a process tries; 0 picks a free port at each start"
    )
    tensorboard: bool = Field(
        default=False, description="also write training steps and probe readings to RUN/tensorboard/"
    )
    wandb: str = Field(
        default="", description="Weights & Biases project for the same figures; empty = off. WANDB_MODE sets the mode"
    )


class LogsConfig(Section):
    """The log files in RUN/logs/, one per process."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged; debug adds every group, batch and step"
    )
    max_bytes: int = Field(default=10_000_000, ge=10_000, description="size at which a log file is rotated")
    backups: int = Field(default=3, ge=1, description="rotated files kept per process")
