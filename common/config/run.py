"""`RunConfig`: the keys outside of sections, and all sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from common.config.cluster import ClusterConfig
from common.config.evaluation import EvaluationConfig
from common.config.exchange import ExchangeConfig
from common.config.guardrails import GuardConfig
from common.config.learner import LearnerConfig
from common.config.metrics import MetricsConfig
from common.config.model import ModelConfig
from common.config.reward import RewardConfig
from common.config.sampler import SamplerConfig
from common.config.section import Section
from common.config.simulation import SimulationConfig
from common.roles import ROLES


class RunConfig(Section):
    """A whole run."""

    mode: Literal["serial", "cluster"] = Field(
        default="serial", description="serial: one process, deterministic; cluster: Ray workers, asynchronous"
    )
    name: str = Field(default="toon", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder")
    root: Path = Field(default=Path("runs"), description="where run folders live")
    seed: int = Field(default=0, ge=0, description="all random numbers are functions of it")
    steps: int = Field(default=60, ge=1, description="optimizer steps")
    prompts: str = Field(default="toon", description="'toon', or a .jsonl/.csv file with columns image, prompt")
    pairs: str = Field(default="", description="pairs or ratings file, or a folder of clips: train on these instead")
    verify: bool = Field(default=False, description="exit 1 unless the held-out reward rose and the oracle held")
    timeline_bytes: int = Field(
        default=20_000_000, ge=100_000, description="of who worked when; the newest units of work are kept"
    )
    simulate: bool = Field(default=False, description="pauses in the place of model work; all else is real")
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    reward: RewardConfig = RewardConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    cluster: ClusterConfig = ClusterConfig()
    simulation: SimulationConfig = SimulationConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="before")
    @classmethod
    def _two_candidates_of_human_pairs(cls, data: Any) -> Any:
        sampler = data.get("sampler", {}) if isinstance(data, Mapping) else None
        if isinstance(sampler, Mapping) and data.get("pairs") and "candidates" not in sampler:
            return {**data, "sampler": {**sampler, "candidates": 2}}
        return data

    @model_validator(mode="after")
    def _gpus_for_cuda(self) -> RunConfig:
        for role in ROLES:
            if self.mode == "cluster" and self.model.device != "cpu" and not self.cluster.placement_of(role).gpus:
                raise ValueError(f"cluster.{role}.gpus = 0, but model.device = {self.model.device!r}: give each a GPU")
        return self

    @model_validator(mode="after")
    def _nothing_to_verify(self) -> RunConfig:
        if self.simulate and self.verify:
            raise ValueError("verify compares clips; with simulate there are none")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.root / self.name

    @property
    def pairs_per_push(self) -> int:
        """B of the admission rule: pairs consumed between two published versions."""
        return self.learner.pairs_per_step * self.learner.steps_per_push
