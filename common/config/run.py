"""The configuration of a run: every section except `[reward]` and `[guard]`, and `RunConfig`, which holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, field_validator, model_validator

from common.config.algorithm import AlgorithmConfig, algorithm_class, section_of
from common.config.reward import GuardConfig, RewardConfig
from common.config.section import Section


class ModelConfig(Section):
    """The image-to-video model to align."""

    path: str = Field(default="toon", description="'toon' (the embedded toy model) or a CogVideoX pipeline folder")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="dtype of weights and activations in every role"
    )
    device: str = Field(
        default="cpu", description="torch device of samplers, rewarders and learner, e.g. cpu or cuda:0"
    )
    frames: int = Field(default=9, ge=1, description="frames per clip; CogVideoX needs 4k+1")
    height: int = Field(default=48, ge=8, description="clip height in pixels; published models need a multiple of 16")
    width: int = Field(default=64, ge=8, description="clip width in pixels; published models need a multiple of 16")
    fps: int = Field(default=8, ge=1, description="frame rate of the clips, frames per second")


def _divides_1000(value: int) -> int:
    if 1000 % value:  # the scheduler's integer division would skip the last timesteps
        divisors = [steps for steps in range(1, 1001) if 1000 % steps == 0]
        below = max(steps for steps in divisors if steps < value)
        near = " or ".join(str(steps) for steps in divisors[divisors.index(below) :][:2])
        raise ValueError(f"must divide the scheduler's 1000 training timesteps; nearest: {near}")
    return value


class SamplerConfig(Section):
    """How the samplers generate candidates."""

    candidates: int = Field(default=4, ge=1, description="clips sampled per prompt; the algorithm keeps some of them")
    steps: Annotated[int, AfterValidator(_divides_1000)] = Field(
        default=10, ge=1, description="denoising steps per clip; must divide 1000"
    )
    guidance: float = Field(default=1.0, ge=1.0, description="classifier-free guidance scale; 1 turns guidance off")
    scheduler: Literal["dpm", "ddim"] = Field(
        default="dpm", description="CogVideoX DPM (stochastic) or DDIM (deterministic)"
    )
    micro_batch: int = Field(
        default=4, ge=1, description="candidates of one prompt denoised in one batch; fewer need less memory"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="from,to in t / T (1 = pure noise): guidance is applied in this range only"
    )
    cache_threshold: float = Field(
        default=0.0,
        ge=0,
        description="First Block Cache: skip the other blocks while the first block's residual changes by less than "
        "this fraction; 0 turns it off",
    )
    compile: bool = Field(
        default=False, description="compile the transformer blocks with torch.compile; takes minutes at startup"
    )
    offload: bool = Field(default=False, description="keep T5 and VAE in host memory while they are idle")
    vae_tiling: bool = Field(default=False, description="encode and decode in overlapping tiles; needs less memory")

    @model_validator(mode="after")
    def _interval(self) -> SamplerConfig:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval = {low:g},{high:g}: must satisfy 0 <= from < to <= 1")
        return self


class ExchangeConfig(Section):
    """The exchange: staleness, reuse, retries and limits of the queue between the workers."""

    max_lag: int = Field(
        default=1,
        ge=0,
        description="staleness bound: weight syncs between sampling a pair and training on it; older pairs expire",
    )
    pipeline_depth: int = Field(default=64, ge=1, description="groups being sampled or scored at the same time")
    ttl_seconds: float = Field(
        default=0.0,
        ge=0,
        description="seconds a pair may wait for training before it expires; set it well above the time of a "
        "step; 0 = no limit",
    )
    max_times_trained: int = Field(default=1, ge=1, description="optimizer steps that may use the same pair")
    max_attempts: int = Field(
        default=3, ge=1, description="leases of a group that may expire or be given back before it counts as failed"
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


class LoraConfig(Section):
    """Low-rank adapters on the transformer's attention."""

    rank: int = Field(default=16, ge=1, description="rank of an adapter")
    alpha: float = Field(default=16.0, gt=0, description="an adapter's output is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        description="modules that get an adapter; on the command line as a,b,c",
    )


class LearnerConfig(Section):
    """Training: optimizer, batches, weight sync, where the reference is kept, memory. What is learned: `algorithm`."""

    train: Literal["full", "lora"] = Field(
        default="full", description="train the whole transformer, or LoRA adapters only"
    )
    lora: LoraConfig = LoraConfig()
    lr: float = Field(default=5e-6, ge=0, description="learning rate of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    clip_norm: float = Field(default=1.0, gt=0, description="maximum gradient norm")
    warmup_steps: int = Field(default=0, ge=0, description="optimizer steps of linear learning-rate warmup")
    pairs_per_step: int = Field(
        default=8, ge=1, description="pairs per optimizer step, over all ranks (global batch size)"
    )
    micro_batch: int = Field(default=8, ge=1, description="pairs per forward pass on one rank")
    steps_per_push: int = Field(
        default=1, ge=1, description="optimizer steps between weight syncs (published versions)"
    )
    caption_drop: float = Field(
        default=0.0, ge=0, le=1, description="probability that a pair is trained with the empty caption"
    )
    image_drop: float = Field(
        default=0.0, ge=0, le=1, description="probability that a pair is trained without its first frame"
    )
    image_noise: bool = Field(
        default=False,
        description="add noise of scale exp(N(-3, 0.5)) to the first-frame latent; CogVideoX was trained with it "
        "on the pixels",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw",
        description="optimizer moments per parameter: 8 bytes (adamw) or 2 bytes (adamw_8bit, needs bitsandbytes)",
    )
    offload_optimizer: bool = Field(
        default=False, description="keep and update float32 master weights and moments in host memory"
    )
    zero_stage: int = Field(default=0, ge=0, le=3, description="DeepSpeed ZeRO stage; with 0 and one rank, plain torch")
    reference: Literal["whole", "sharded", "host"] = Field(
        default="whole",
        description="full training: a frozen copy on every rank, sharded over the ranks, or in host memory",
    )
    gradient_checkpointing: Literal["off", "selective", "full"] = Field(
        default="off", description="activations recomputed in the backward pass: none, all but attention's, or all"
    )
    compile: bool = Field(
        default=False, description="compile the transformer blocks with torch.compile; takes minutes at startup"
    )
    checkpoint_every: int = Field(
        default=10, ge=1, description="optimizer steps between checkpoints; a multiple of steps_per_push"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints to keep; older ones are deleted")

    @model_validator(mode="after")
    def _checkpoints_at_pushes(self) -> LearnerConfig:
        # Between weight syncs the samplers hold older weights than the learner: only a synced step can be resumed.
        if self.checkpoint_every % self.steps_per_push:
            raise ValueError(
                f"checkpoint_every = {self.checkpoint_every} must be a multiple of steps_per_push = "
                f"{self.steps_per_push}"
            )
        return self

    @model_validator(mode="after")
    def _reference_has_a_place(self) -> LearnerConfig:
        if self.reference != "whole" and self.train == "lora":
            raise ValueError(
                f"reference = {self.reference!r}: with train = 'lora' the reference is an adapter; use 'whole'"
            )
        if self.reference == "sharded" and not self.zero_stage:
            raise ValueError("reference = 'sharded': needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _recomputed_as_it_was(self) -> LearnerConfig:
        # Stage 3 gathers weights inside a block, and gathers other ones in the backward pass than in the forward pass.
        if self.gradient_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError(
                "gradient_checkpointing = 'selective': needs zero_stage 0, 1 or 2; 'off' and 'full' work with any"
            )
        return self


class EvaluationConfig(Section):
    """The held-out comparison of base and aligned model at the end of a run: same prompts, same seeds."""

    prompts: int = Field(default=96, ge=2, description="held-out prompts")
    clips: int = Field(default=12, ge=0, description="clip pairs shown in the report")


class SimulationConfig(Section):
    """Simulated work (`simulate = true`): the durations and data sizes that replace the model.

    Durations are log-normal; `tail` is the standard deviation of their logarithm. The 99th percentile is
    exp(2.33 tail - tail^2 / 2) times the mean: 1 at tail 0, 2.8 at 0.5, 6.2 at 1.
    """

    sample_seconds: float = Field(default=0.05, ge=0, description="mean seconds to sample one candidate")
    score_seconds: float = Field(default=0.01, ge=0, description="mean seconds to score one clip")
    step_seconds: float = Field(default=0.1, ge=0, description="mean seconds per optimizer step")
    load_seconds: float = Field(default=0.01, ge=0, description="mean seconds to load a new weight version")
    tail: float = Field(
        default=0.5,
        ge=0,
        le=3,
        description="standard deviation of the logarithm of every duration; 0 makes durations constant",
    )
    failure_rate: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a sampler gives a group back, and that a clip is scored NaN",
    )
    latents_bytes: int = Field(default=100_000, ge=1, description="size of one candidate's latents in bytes")
    clip_bytes: int = Field(default=20_000, ge=1, description="size of one clip in bytes")
    embeds_bytes: int = Field(default=20_000, ge=1, description="size of one prompt's conditioning in bytes")
    weights_bytes: int = Field(default=1_000_000, ge=1, description="size of one weight version in bytes")


class ClusterConfig(Section):
    """Workers per role, and where they run. Used only in cluster mode."""

    address: str = Field(
        default="",
        description="address of a running Ray, or 'auto'; empty: RAY_ADDRESS if set, else start Ray on this machine",
    )
    samplers: int = Field(default=2, ge=1, description="number of sampler processes")
    rewarders: int = Field(default=1, ge=1, description="number of rewarder processes")
    learners: int = Field(default=1, ge=1, description="learner ranks, all on one node")
    sampler_gpus: float = Field(default=0, ge=0, description="GPUs reserved for each sampler; 0 on CPU")
    rewarder_gpus: float = Field(
        default=0, ge=0, description="GPUs reserved for each rewarder; a fraction shares one GPU"
    )
    learner_gpus: float = Field(default=0, ge=0, description="GPUs reserved for each learner rank; 0 on CPU")
    sampler_node: str = Field(default="", description="Ray custom resource that sampler nodes must have, e.g. H100")
    rewarder_node: str = Field(default="", description="Ray custom resource that rewarder nodes must have")
    learner_node: str = Field(
        default="", description="Ray custom resource of the node for learner and exchange, e.g. A800"
    )
    keys: Literal["auto", "always"] = Field(
        default="auto",
        description="encrypt and authenticate with CURVE keys: unless on loopback (auto), or always (shared machines)",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65531,
        description="first of the hub's five consecutive ports; 0 picks free ports at each start",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads per worker process")
    placement_seconds: float = Field(
        default=120, gt=0, description="seconds to wait for the requested nodes before giving up"
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


class RunConfig(Section):
    """The whole configuration of a run."""

    mode: Literal["serial", "cluster"] = Field(
        default="serial", description="serial: one process, deterministic; cluster: Ray workers, asynchronous"
    )
    name: str = Field(default="toon", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder")
    root: Path = Field(default=Path("runs"), description="folder that holds the run folders")
    seed: int = Field(default=0, ge=0, description="seed that all random numbers are derived from")
    steps: int = Field(default=60, ge=1, description="total optimizer steps; raise it to continue a finished run")
    prompts: str = Field(default="toon", description="'toon', or a .jsonl/.csv file with the columns image and prompt")
    pairs: str = Field(
        default="",
        description="train on recorded data instead of sampling: a pairs file, a ratings file, or a folder of clips",
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
    guard: GuardConfig = GuardConfig()
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
        if self.sampler.candidates < least:
            raise ValueError(
                f"sampler.candidates = {self.sampler.candidates}: algorithm {self.algorithm.name} needs {least} or more"
            )
        return self

    @model_validator(mode="after")
    def _gpus_for_cuda(self) -> RunConfig:
        for role in ("sampler", "rewarder", "learner"):
            if self.mode == "cluster" and self.model.device != "cpu" and not getattr(self.cluster, f"{role}_gpus"):
                raise ValueError(f"cluster.{role}_gpus = 0, but model.device = {self.model.device!r}: give each a GPU")
        return self

    @model_validator(mode="after")
    def _nothing_to_verify(self) -> RunConfig:
        if self.simulate and self.verify:
            raise ValueError("verify compares clips; with simulate there are none")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder, `root`/`name`."""
        return self.root / self.name

    @property
    def pairs_per_push(self) -> int:
        """Pairs consumed between two weight syncs (B in the admission rule)."""
        return self.learner.pairs_per_step * self.learner.steps_per_push
