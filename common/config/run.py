"""A run's configuration: what is left of its sections, and `RunConfig`, which holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from common.config.reward import GuardConfig, RewardConfig
from common.config.section import Section
from common.roles import LEARNER, REWARDER, ROLES, SAMPLER


class ModelConfig(Section):
    """Which image-to-video model is aligned."""

    path: str = Field(default="toon", description="'toon' (embedded) or a CogVideoX pipeline folder")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights and activations of all roles")
    device: str = Field(default="cpu", description="torch device of sampler, rewarders and learner, e.g. cpu, cuda:0")
    frames: int = Field(default=9, ge=1, description="frames per clip; 4k+1 for CogVideoX 1.0")
    height: int = Field(default=48, ge=8, description="pixels, a multiple of 8")
    width: int = Field(default=64, ge=8, description="pixels, a multiple of 8")
    fps: int = Field(default=8, ge=1, description="frames per second of the clips")


def _divides_1000(value: int) -> int:
    if 1000 % value:  # the scheduler's integer division would skip the last timesteps
        divisors = [steps for steps in range(1, 1001) if 1000 % steps == 0]
        below = max(steps for steps in divisors if steps < value)
        near = " or ".join(str(steps) for steps in divisors[divisors.index(below) :][:2])
        raise ValueError(f"must divide the scheduler's 1000 training timesteps; nearest: {near}")
    return value


class SamplerConfig(Section):
    """How candidates are made."""

    candidates: int = Field(default=4, ge=2, description="N, candidates per prompt: best and worst make the pair")
    steps: Annotated[int, AfterValidator(_divides_1000)] = Field(default=10, ge=1, description="denoising steps")
    guidance: float = Field(default=1.0, ge=1.0, description="classifier-free guidance scale; 1 switches it off")
    scheduler: Literal["dpm", "ddim"] = Field(default="dpm", description="CogVideoX DPM (stochastic) or DDIM")
    micro_batch: int = Field(default=4, ge=1, description="candidates denoised together")
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="share of the noise levels, t / T, in which there is guidance"
    )
    cache_threshold: float = Field(
        default=0.0, ge=0, description="blocks are skipped while the first one's residual changes by less; 0 never"
    )
    compile: bool = Field(default=False, description="compile the transformer's blocks; minutes at the start")
    offload: bool = Field(default=False, description="T5 and VAE wait in host memory while they are not used")
    vae_tiling: bool = Field(default=False, description="the VAE decodes in overlapping tiles: less memory")

    @model_validator(mode="after")
    def _interval(self) -> SamplerConfig:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval = {low:g},{high:g}: 0 <= from < to <= 1 is needed")
        return self


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


class LoraConfig(Section):
    """Low-rank adapters on the transformer's attention."""

    rank: int = Field(default=16, ge=1, description="inner width of an adapter")
    alpha: float = Field(default=16.0, gt=0, description="scale = alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"), description="modules that get an adapter; a flag takes a,b,c"
    )


class LearnerConfig(Section):
    """The optimizer's side: loss, step sizes, pushes, the reference."""

    loss: Literal["gapo", "dpo", "sft"] = Field(
        default="gapo", description="gap-weighted DPO, plain DPO, or winners only"
    )
    train: Literal["full", "lora"] = Field(default="full", description="all transformer blocks, or adapters only")
    lora: LoraConfig = LoraConfig()
    alpha: float = Field(
        default=2.0, ge=1.0, description="base of the gap gain alpha^Rw - alpha^Rl; 1 gives no gradient"
    )
    beta: float = Field(default=5000.0, gt=0, description="DPO temperature, half-beta convention, mean v error")
    lr: float = Field(default=5e-6, ge=0, description="learning rate of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    clip_norm: float = Field(default=1.0, gt=0, description="gradient norm bound")
    warmup_steps: int = Field(default=0, ge=0, description="linear learning-rate warm-up, optimizer steps")
    pairs_per_step: int = Field(default=8, ge=1, description="pairs in one optimizer step, over all ranks")
    micro_batch: int = Field(default=8, ge=1, description="pairs in one forward pass of one rank")
    steps_per_push: int = Field(default=1, ge=1, description="P: optimizer steps between published versions")
    refresh_every: int = Field(default=0, ge=0, description="K: optimizer steps between reference refreshes; 0 never")
    normalise_gap: bool = Field(default=False, description="divide gaps by their batch mean (not in the papers)")
    caption_drop: float = Field(default=0.0, ge=0, le=1, description="share of pairs trained on the empty caption")
    image_drop: float = Field(default=0.0, ge=0, le=1, description="share of pairs trained without first frame")
    image_noise: bool = Field(
        default=False, description="noise exp(N(-3, 0.5)) on the first-frame latent (a deviation)"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="AdamW with moments of 8 bytes a parameter, or of 2"
    )
    offload_optimizer: bool = Field(
        default=False, description="master weights and moments lie in host memory and are updated there"
    )
    zero_stage: int = Field(default=0, ge=0, le=3, description="DeepSpeed ZeRO stage; 0 of one rank: torch alone")
    reference: Literal["whole", "sharded", "host"] = Field(
        default="whole", description="full training: the frozen copy on every rank, in shares, or in host memory"
    )
    gradient_checkpointing: Literal["off", "selective", "full"] = Field(
        default="off", description="activations computed again in the backward pass: all but attention's, or all"
    )
    compile: bool = Field(default=False, description="compile the transformer's blocks; minutes at the start")
    checkpoint_every: int = Field(default=10, ge=1, description="optimizer steps between checkpoints; a multiple of P")
    keep_checkpoints: int = Field(default=2, ge=1, description="older ones are deleted")

    @model_validator(mode="after")
    def _checkpoints_at_pushes(self) -> LearnerConfig:
        # Between two pushes the samplers hold older weights than the learner: only pushed steps can be resumed.
        if self.checkpoint_every % self.steps_per_push:
            raise ValueError(
                f"checkpoint_every = {self.checkpoint_every} must be a multiple of steps_per_push = "
                f"{self.steps_per_push}"
            )
        return self

    @model_validator(mode="after")
    def _reference_has_a_place(self) -> LearnerConfig:
        if self.reference != "whole" and self.train == "lora":
            raise ValueError(f"reference = {self.reference!r}: with train = 'lora' it is an adapter; only 'whole'")
        if self.reference == "sharded" and not self.zero_stage:
            raise ValueError("reference = 'sharded': needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _recomputed_as_it_was(self) -> LearnerConfig:
        # Stage 3 gathers weights within a block, other ones in the backward pass than in the forward one.
        if self.gradient_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError("gradient_checkpointing = 'selective': needs zero_stage 0, 1 or 2; 'off' and 'full' any")
        return self


class EvaluationConfig(Section):
    """The held-out comparison at the end of a run: base against aligned, same prompts, same seeds."""

    prompts: int = Field(default=96, ge=2, description="held-out prompts")
    clips: int = Field(default=12, ge=0, description="clip pairs shown in the report")


class SimulationConfig(Section):
    """What takes the place of model work with `simulate`: pauses, and data of these sizes.

    A pause is log-normal: `tail` is the standard deviation of its logarithm. Its 99th percentile is
    exp(2.33 tail - tail^2 / 2) times the mean: 1 at tail 0, 2.8 at 0.5, 6.2 at 1.
    """

    sample_seconds: float = Field(default=0.05, ge=0, description="mean time to sample one candidate")
    score_seconds: float = Field(default=0.01, ge=0, description="mean time to score one clip")
    step_seconds: float = Field(default=0.1, ge=0, description="mean time of one optimizer step")
    load_seconds: float = Field(default=0.01, ge=0, description="mean time to swap in a weight version")
    tail: float = Field(default=0.5, ge=0, le=3, description="how heavy the tail of all times is; 0 is none")
    failure_rate: float = Field(
        default=0.0, ge=0, lt=1, description="share of groups given back, and of clips scored NaN"
    )
    latents_bytes: int = Field(default=100_000, ge=1, description="latents of one candidate")
    clip_bytes: int = Field(default=20_000, ge=1, description="one clip")
    embeds_bytes: int = Field(default=20_000, ge=1, description="conditioning of one prompt")
    weights_bytes: int = Field(default=1_000_000, ge=1, description="one weight version")


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


class MetricsConfig(Section):
    """What watches a run from outside: an exporter for Prometheus in every process, and TensorBoard's files."""

    enabled: bool = Field(default=True, description="all processes serve metrics over HTTP; RUN/prometheus lists them")
    port: int = Field(
        default=0, ge=0, le=65535, description="first port that a process tries; 0: free ones, others at every start"
    )
    tensorboard: bool = Field(
        default=False, description="steps and readings of the guardrails also go to RUN/tensorboard/"
    )


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
