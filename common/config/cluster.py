"""``[cluster]``: how many processes of each role there are, and where they run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section
from common.roles import LEARNER, REWARDER, SAMPLER


class Placement(Section):
    """How many processes of one role there are, and where they run."""

    count: int = Field(default=1, ge=1, description="number of processes")
    gpus: float = Field(default=0, ge=0, description="GPUs reserved for each process; a fraction shares one; 0 on CPU")
    node: str = Field(default="", description="Ray custom resource that their nodes must have, e.g. H100; empty: any")


class SamplerPlacement(Placement):
    """``[cluster.sampler]``."""

    count: int = Field(default=2, ge=1, description="number of processes")


class LearnerPlacement(Placement):
    """``[cluster.learner]``."""

    count: int = Field(default=1, ge=1, description="number of ranks, all on one node")
    node: str = Field(default="", description="Ray custom resource that the node of learner and exchange must have")


class ClusterConfig(Section):
    """Workers per role, and where they run. Used only in cluster mode."""

    address: str = Field(
        default="",
        description="address of a running Ray, or 'auto'; empty: RAY_ADDRESS if set, else start Ray on this machine",
    )
    sampler: SamplerPlacement = SamplerPlacement()
    rewarder: Placement = Placement()
    learner: LearnerPlacement = LearnerPlacement()
    keys: Literal["auto", "always"] = Field(
        default="auto",
        description="encrypt and authenticate with CURVE keys: unless on loopback (auto), or always (shared machines)",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65532,
        description="first of the hub's four consecutive ports; 0 picks free ports at each start",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads per worker process")
    placement_seconds: float = Field(
        default=120, gt=0, description="seconds to wait for the requested nodes before giving up"
    )
    grows: bool = Field(
        default=False,
        description="an autoscaler adds nodes: wait for them, placement_seconds each, instead of refusing a run that "
        "the present nodes can never hold",
    )
    restarts: int = Field(
        default=5,
        ge=0,
        description="restarts allowed per worker per hour; beyond that a sampler is dropped, and any other worker "
        "stops the run (exit code 3)",
    )
    restart_seconds: float = Field(
        default=1.0,
        gt=0,
        description="seconds before a restart; doubles with every crash within the hour, up to 60 s",
    )
    min_samplers: int = Field(
        default=1, ge=0, description="minimum number of samplers; with fewer the run saves and stops (exit code 3)"
    )

    def placement_of(self, role: str) -> Placement:
        """Returns the section of a role (`common.roles.ROLES`)."""
        return {SAMPLER: self.sampler, REWARDER: self.rewarder, LEARNER: self.learner}[role]
