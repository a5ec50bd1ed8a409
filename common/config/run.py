"""`RunConfig`: the keys outside of sections, and all sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from common.config.algorithm import AlgorithmConfig, algorithm_class, section_of
from common.config.cluster import ClusterConfig
from common.config.evaluation import EvaluationConfig
from common.config.exchange import ExchangeConfig
from common.config.guardrails import GuardrailsConfig
from common.config.learner import LearnerConfig
from common.config.metrics import LogsConfig, MetricsConfig
from common.config.model import ModelConfig
from common.config.reward import RewardConfig
from common.config.sampler import CollectConfig, SamplerConfig
from common.config.section import Section
from common.config.simulation import SimulationConfig
from common.roles import LEARNER, ROLES


class RunConfig(Section):
    """The whole configuration of a run."""

    mode: Literal["serial", "cluster"] = Field(
        default="serial", description="serial: one process, deterministic; cluster: Ray workers, asynchronous"
    )
    name: str = Field(default="toon", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder")
    root: Path = Field(default=Path("runs"), description="folder that holds the run folders")
    seed: int = Field(default=0, ge=0, description="seed that all random numbers are derived from")
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads of a serial run; 0: those it began with, at first as many as torch takes "
        "(OMP_NUM_THREADS, else one per core). Another number changes the last bits",
    )
    steps: int = Field(
        default=60,
        ge=1,
        description="total optimizer steps; raise it to continue a finished run, "
        "unless learner.lr_schedule or learner.warmup_ratio depends on it",
    )
    prompts: str = Field(default="toon", description="'toon', or a .jsonl/.csv file with the columns image and prompt")
    pairs: str = Field(
        default="",
        description="train on offline data instead of sampling: a pairs file, a ratings file, or a folder of clips",
    )
    candidates: str = Field(
        default="",
        description="train on a candidate set instead of sampling: its folder, or the run that collected it",
    )
    pairs_category: str = Field(
        default="", description="train on the clips of one category of the pairs or ratings file only; empty: all"
    )
    keep_candidates_bytes: int = Field(
        default=0,
        ge=0,
        description="keep all candidates of the training groups in the candidate set RUN/kept: the first groups, until "
        "the next one would make it larger than this many bytes; 0: keep none",
    )
    verify: bool = Field(
        default=False,
        description="exit with code 1 unless the held-out reward rose and the oracle found no loss of quality",
    )
    timeline_bytes: int = Field(
        default=20_000_000,
        ge=100_000,
        description="maximum size of timeline.jsonl in bytes; the oldest records are dropped",
    )
    simulate: bool = Field(
        default=False, description="replace the model's work by pauses and dummy data; everything else runs as usual"
    )
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    reward: RewardConfig = RewardConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    algorithm: SerializeAsAny[AlgorithmConfig] = Field(default_factory=lambda: section_of({}))
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guardrails: GuardrailsConfig = GuardrailsConfig()
    collect: CollectConfig = CollectConfig()
    cluster: ClusterConfig = ClusterConfig()
    simulation: SimulationConfig = SimulationConfig()
    metrics: MetricsConfig = MetricsConfig()
    logs: LogsConfig = LogsConfig()

    @field_validator("algorithm", mode="before")
    @classmethod
    def _section_of_its_algorithm(cls, value: Any) -> Any:
        return section_of(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _enough_candidates(self) -> RunConfig:
        least = algorithm_class(self.algorithm.name).min_candidates
        if self.sampler.candidates < least and not self.collect.prompts:
            raise ValueError(
                f"sampler.candidates = {self.sampler.candidates}: algorithm {self.algorithm.name} needs {least} or more"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_drop_nothing(self) -> RunConfig:
        if algorithm_class(self.algorithm.name).needs_rollouts:
            values = {key: getattr(self.learner, key) for key in ("caption_drop", "image_drop", "image_noise")}
            for key, value in values.items():
                if value:
                    why = f"algorithm {self.algorithm.name} denoises clips with their whole condition; remove the key"
                    raise ValueError(f"learner.{key} = {value}: {why}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _two_candidates_of_human_pairs(cls, data: Any) -> Any:
        sampler = data.get("sampler", {}) if isinstance(data, Mapping) else None
        if isinstance(sampler, Mapping) and data.get("pairs") and "candidates" not in sampler:
            return {**data, "sampler": {**sampler, "candidates": 2}}
        return data

    @model_validator(mode="before")
    @classmethod
    def _no_guardrails_without_reward(cls, data: Any) -> Any:
        reward = data.get("reward", {}) if isinstance(data, Mapping) else None
        if isinstance(reward, Mapping) and reward.get("path") == "" and not reward.get("judges"):
            guardrails = data.get("guardrails", {})
            if isinstance(guardrails, Mapping) and "prompts" not in guardrails:
                return {**data, "guardrails": {**guardrails, "prompts": 0}}
        return data

    @model_validator(mode="after")
    def _something_scores(self) -> RunConfig:
        if not self.reward.empty:
            return self
        nothing = "reward.path is empty and there are no judges: nothing scores the clips"
        if not self.pairs:
            raise ValueError(f"{nothing}; only pairs, which people rated, need no reward")
        if self.verify:
            raise ValueError(f"verify: {nothing}; remove it, or add a judge")
        if self.guardrails.prompts:
            raise ValueError(f"guardrails.prompts = {self.guardrails.prompts}: {nothing}; set it to 0, or add a judge")
        return self

    @model_validator(mode="after")
    def _category_of_pairs(self) -> RunConfig:
        if self.pairs_category and not self.pairs:
            raise ValueError(f"pairs_category = {self.pairs_category!r}: set pairs as well")
        return self

    @model_validator(mode="after")
    def _gpus_for_cuda(self) -> RunConfig:
        for role in ROLES:
            on_gpu = self.mode == "cluster" and self.model.device != "cpu" and self.workers_of(role) > 0
            on_gpu = on_gpu and (role == LEARNER or self.samples)
            if on_gpu and not self.cluster.placement_of(role).gpus:
                raise ValueError(f"cluster.{role}.gpus = 0, but model.device = {self.model.device!r}: give each a GPU")
        return self

    @model_validator(mode="after")
    def _nothing_to_verify(self) -> RunConfig:
        if self.simulate and self.verify:
            raise ValueError("verify compares clips; with simulate there are none")
        return self

    @model_validator(mode="after")
    def _nothing_to_collect(self) -> RunConfig:
        key = next((key for key in ("simulate", "pairs", "candidates", "verify") if getattr(self, key)), None)
        if self.collect.prompts and key:
            raise ValueError(f"collect.prompts = {self.collect.prompts}: nothing is trained; remove {key}")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> RunConfig:
        if self.candidates and (self.pairs or self.simulate):
            other = "pairs" if self.pairs else "simulate"
            raise ValueError(f"candidates = {self.candidates!r}: excludes {other}; remove one of the two keys")
        return self

    @model_validator(mode="after")
    def _something_to_keep(self) -> RunConfig:
        key = next((key for key in ("simulate", "pairs", "candidates") if getattr(self, key)), None)
        if self.keep_candidates_bytes and key:
            raise ValueError(
                f"keep_candidates_bytes = {self.keep_candidates_bytes}: with {key} the run samples no training "
                "candidates; remove one of the two keys"
            )
        return self

    @model_validator(mode="after")
    def _something_to_verify(self) -> RunConfig:
        if self.verify and not self.evaluation.prompts:
            raise ValueError("verify needs the held-out comparison; set evaluation.prompts to 2 or more")
        return self

    @property
    def samples(self) -> bool:
        """Whether the run samples any clip. If not, its samplers and rewarders load no model and need no GPU."""
        return bool(not self.candidates or self.evaluation.prompts or self.guardrails.prompts)

    def gpus_of(self, role: str) -> float:
        """GPUs of each worker of a role."""
        return self.cluster.placement_of(role).gpus if role == LEARNER or self.samples else 0.0

    @property
    def offline(self) -> bool:
        """Whether the training data exists before the run. Then no group is too old to train on."""
        return bool(self.pairs or self.candidates)

    @property
    def folder(self) -> Path:
        """The run's folder, `root`/`name`."""
        return self.root / self.name

    def workers_of(self, role: str) -> int:
        """How many workers of a role the run starts in cluster mode. A collection has no learner."""
        return 0 if role == LEARNER and self.collect.prompts else self.cluster.placement_of(role).count

    @property
    def groups_per_push(self) -> int:
        """Groups trained on between two weight syncs (B in the admission rule)."""
        return self.learner.batch_size * self.learner.steps_per_push
