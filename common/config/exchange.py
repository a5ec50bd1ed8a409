"""``[exchange]``: the rules and limits of the replay queue."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section


class ExchangeConfig(Section):
    """Order, staleness, reuse and limits: the rules of the replay queue."""

    max_lag: int = Field(default=1, ge=0, description="pushes a pair may be older than the policy when it is trained")
    pipeline_depth: int = Field(default=64, ge=1, description="groups that may be under way at once")
    min_gap: float = Field(default=0.0, ge=0, description="groups whose gap gain is below this are tied, not trained")
    ttl_seconds: float = Field(
        default=0.0,
        ge=0,
        description="a pair that waited longer for its step expires; far above a step's time; 0 never",
    )
    max_times_trained: int = Field(default=1, ge=1, description="optimizer steps that may use one pair")
    max_attempts: int = Field(default=3, ge=1, description="leases of a group before it counts as failed")
    lease_seconds: float = Field(default=600.0, gt=0, description="a lease not renewed for this long is taken back")
    order: Literal["fifo", "gap"] = Field(
        default="fifo", description="which pairs train first: oldest, or gap x freshness"
    )
    max_bytes: int = Field(
        default=20_000_000_000, ge=1_000_000, description="blobs on disk; samplers wait at the bound"
    )
    keep_groups: int = Field(
        default=2_000, ge=1, description="groups back to which the ledger knows each; of older ones that ended, sums"
    )
