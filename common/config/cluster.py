"""``[cluster]``: how many processes of each role there are, and where they run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section
from common.roles import LEARNER, REWARDER, SAMPLER


class Placement(Section):
    """How many processes of one role there are, and where they run."""

    count: int = Field(default=1, ge=1, description="processes")
    gpus: float = Field(default=0, ge=0, description="GPUs of each process; 0 on CPU")
    node: str = Field(default="", description="custom Ray resource of the nodes that may run them; empty: any node")


class SamplerPlacement(Placement):
    """``[cluster.sampler]``."""

    count: int = Field(default=2, ge=1, description="sampler processes")
    gpus: float = Field(default=0, ge=0, description="GPUs each sampler holds alone; 0 on CPU")
    node: str = Field(default="", description="custom resource of the nodes samplers may run on, e.g. H100")


class RewarderPlacement(Placement):
    """``[cluster.rewarder]``."""

    count: int = Field(default=1, ge=1, description="rewarder processes")
    gpus: float = Field(default=0, ge=0, description="GPUs each rewarder holds; a fraction shares one")
    node: str = Field(default="", description="custom resource of the nodes rewarders may run on")


class LearnerPlacement(Placement):
    """``[cluster.learner]``."""

    count: int = Field(default=1, ge=1, description="ranks of the learner, all on one node")
    gpus: float = Field(default=0, ge=0, description="GPUs each learner rank holds alone; 0 on CPU")
    node: str = Field(default="", description="custom resource of the learner's and exchange's node, e.g. A800")


class ClusterConfig(Section):
    """How many workers of which kind, and where. Read in cluster mode only."""

    address: str = Field(
        default="", description="of a running Ray, or 'auto'; empty: RAY_ADDRESS, else a Ray of its own on this machine"
    )
    sampler: SamplerPlacement = SamplerPlacement()
    rewarder: RewarderPlacement = RewarderPlacement()
    learner: LearnerPlacement = LearnerPlacement()
    keys: Literal["auto", "always"] = Field(
        default="auto", description="CURVE keys between processes: off loopback, or on it too (shared machines)"
    )
    port: int = Field(
        default=0, ge=0, le=65531, description="of the hub, and the four after it; 0: free ones, others at every start"
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of each worker process")
    placement_seconds: float = Field(default=120, gt=0, description="how long to wait for the nodes that are asked for")
    restarts: int = Field(default=5, ge=0, description="deaths of one worker within an hour that are mended")
    restart_seconds: float = Field(default=1.0, gt=0, description="pause before a restart; doubles with every death")
    min_samplers: int = Field(default=1, ge=0, description="with fewer samplers the run saves and stops, exit code 3")

    def placement_of(self, role: str) -> Placement:
        """Returns the section of a role (`common.roles.ROLES`)."""
        return {SAMPLER: self.sampler, REWARDER: self.rewarder, LEARNER: self.learner}[role]
