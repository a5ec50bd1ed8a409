"""``[exchange]``: the rules and limits of the replay queue."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section


class ExchangeConfig(Section):
    """The exchange: staleness, reuse, retries and limits of the queue between the workers."""

    max_lag: int = Field(
        default=1,
        ge=0,
        description="staleness bound: weight syncs between sampling a pair and training on it; older pairs expire",
    )
    pipeline_depth: int = Field(default=64, ge=1, description="groups being sampled or scored at the same time")
    max_times_trained: int = Field(default=1, ge=1, description="optimizer steps that may use the same pair")
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="leases of a candidate that may expire or be given back before its group counts as failed",
    )
    lease_seconds: float = Field(
        default=600.0,
        gt=0,
        description="seconds without a heartbeat after which a lease expires and the work goes to another worker",
    )
    order: Literal["fifo", "priority"] = Field(
        default="fifo",
        description="which groups train first: fifo (least used, then oldest) or priority (largest weight / (1 + lag))",
    )
    max_bytes: int = Field(
        default=20_000_000_000,
        ge=1_000_000,
        description="disk limit for latents and clips in bytes; samplers pause when it is reached",
    )
    keep_groups: int = Field(
        default=2_000,
        ge=1,
        description="recent training groups kept in full; older finished groups are reduced to totals",
    )
