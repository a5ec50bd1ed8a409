"""Every knob of a run, as pydantic models: defaults < TOML file < dotted flags.

This module imports no torch, so that ``douga --help`` answers at once. A wrong key or value raises
`ConfigError`, which names the key, where it stands and what is allowed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

DIMENSIONS = ("smoothness", "motion", "appeal", "text", "image", "character")
PRESETS: dict[str, dict[str, float]] = {"equal": dict.fromkeys(DIMENSIONS, 1.0)}  # weights of the six by name


class ConfigError(ValueError):
    """Bad input from the user: one line that says what, where, and what is allowed. Exit code 2."""


def _divides_1000(value: int) -> int:
    if 1000 % value:  # the scheduler's integer division would skip the last timesteps
        divisors = [steps for steps in range(1, 1001) if 1000 % steps == 0]
        below = max(steps for steps in divisors if steps < value)
        near = " or ".join(str(steps) for steps in divisors[divisors.index(below) :][:2])
        raise ValueError(f"must divide the scheduler's 1000 training timesteps; nearest: {near}")
    return value


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class ModelConfig(Section):
    """Which image-to-video model is aligned."""

    path: str = Field(default="toon", description="'toon' (embedded) or a CogVideoX pipeline folder")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights and activations of all roles")
    device: str = Field(default="cpu", description="torch device of sampler, rewarders and learner, e.g. cpu, cuda:0")
    frames: int = Field(default=9, ge=1, description="frames per clip; 4k+1 for CogVideoX 1.0")
    height: int = Field(default=48, ge=8, description="pixels, a multiple of 8")
    width: int = Field(default=64, ge=8, description="pixels, a multiple of 8")
    fps: int = Field(default=8, ge=1, description="frames per second of the clips")


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


class RewardWeights(Section):
    """Weights of the six AnimeReward dimensions in the mean reward; 0 leaves a dimension out."""

    smoothness: float = Field(default=1.0, ge=0, description="no flicker, no jitter")
    motion: float = Field(default=1.0, ge=0, description="how much moves")
    appeal: float = Field(default=1.0, ge=0, description="how well it is drawn")
    text: float = Field(default=1.0, ge=0, description="shows what the caption says")
    image: float = Field(default=1.0, ge=0, description="keeps to the first frame's scene")
    character: float = Field(default=1.0, ge=0, description="stays the same character")


class JudgeConfig(Section):
    """A judge, and what it is shown. Where 0 or nothing stands, its kind decides."""

    kind: str = Field(min_length=1, description="a built-in kind, or a class of yours as package.module:Class")
    path: str = Field(default="", description="model folder or hub id")
    url: str = Field(default="", description="of kind remote: http(s)://HOST:PORT; of several servers a,b,c")
    token_file: str = Field(default="", description="of kind remote: a file that holds the servers' bearer token")
    timeout: float = Field(default=60.0, gt=0, description="of kind remote: seconds that one call may take")
    retries: int = Field(default=3, ge=0, description="of kind remote: further tries of a call that failed")
    fps: float = Field(default=0.0, ge=0, description="frames per second that it is shown")
    frames: int = Field(default=0, ge=0, description="frames that it is shown, evenly over the clip")
    size: tuple[int, ...] = Field(default=(), description="height,width in pixels that it is shown")
    low: float = Field(default=0.0, description="the raw value that becomes 0")
    high: float = Field(default=0.0, description="the raw value that becomes 100")
    frame_weights: Literal["uniform", "central"] = Field(
        default="uniform", description="of image rewards: frames count alike, or as InstructVideo's exp(-distance)"
    )

    @model_validator(mode="after")
    def _fits(self) -> JudgeConfig:
        if self.size and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size = {','.join(map(str, self.size))}: height,width in pixels are needed")
        if (self.low, self.high) != (0, 0) and not self.low < self.high:
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}: low must be below high")
        return self

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses in `url`, without a slash at the end."""
        return tuple(one.strip().rstrip("/") for one in self.url.split(",") if one.strip())


class RewardJudgeConfig(JudgeConfig):
    """A judge beside the six AnimeReward heads, and what its opinion counts."""

    weight: float = Field(default=1.0, ge=0, description="in the mean reward; 0: scores are kept and do not count")
    outputs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="weight of an output within the judge; with none given all count alike"
    )

    @model_validator(mode="after")
    def _some_output(self) -> RewardJudgeConfig:
        if self.outputs and not any(self.outputs.values()):
            raise ValueError("outputs: at least one weight must be above 0; the judge's own weight = 0 leaves it out")
        return self


def _judge_name(name: str) -> str:
    taken = (*DIMENSIONS, "all", "global")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in taken:
        raise ValueError(f"a judge's name is letters, digits and _, and none of {', '.join(taken)}")
    return name


JudgeName = Annotated[str, AfterValidator(_judge_name)]


class RewardConfig(Section):
    """How candidates are scored, and what of it counts (`common/feedback.py`)."""

    path: str = Field(default="toon", description="'toon' (embedded heads), a folder of reward heads, or empty: none")
    preset: str = Field(default="", description=f"weights by name, in place of reward.weights: {', '.join(PRESETS)}")
    weights: RewardWeights = RewardWeights()
    judges: dict[JudgeName, RewardJudgeConfig] = Field(default={})
    feedback: str = Field(
        default="all",
        description="what makes the pairs: all (the weighted mean), global (the plain mean of all that is scored), "
        "or one dimension, judge or judge's output",
    )
    batch: int = Field(default=16, ge=1, description="clips scored together, of any prompts")
    batch_seconds: float = Field(
        default=0.0, ge=0, description="cluster mode: how long a batch that is not full waits for more clips"
    )
    normaliser: Literal["fixed", "quantile"] = Field(
        default="fixed", description="raw score to [0, 1]: x/100 or running rank"
    )

    @model_validator(mode="after")
    def _one_preset(self) -> RewardConfig:
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"preset = {self.preset!r}: allowed are {', '.join(PRESETS)}")
        if self.preset and self.weights != RewardWeights():
            raise ValueError(f"preset = {self.preset!r}, and weights: give one of them")
        return self

    @model_validator(mode="after")
    def _something_counts(self) -> RewardConfig:
        if not self.path and not self.judges:
            raise ValueError("path is empty and there are no judges: nothing scores the clips")
        if not any([*self.head_weights.values(), *(judge.weight for judge in self.judges.values())]):
            raise ValueError("weights: at least one weight must be above 0")
        names = (*(DIMENSIONS if self.path else ()), *self.judges)
        if self.feedback not in ("all", "global", *names) and self.feedback.partition(".")[0] not in self.judges:
            raise ValueError(f"feedback = {self.feedback!r}: allowed are all, global, {', '.join(names)}")
        return self

    @property
    def head_weights(self) -> dict[str, float]:
        """Weight of each AnimeReward dimension: the preset's, or those in `weights`; none where there are no heads."""
        if not self.path:
            return {}
        return dict(PRESETS[self.preset]) if self.preset else self.weights.model_dump()


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


class GuardConfig(Section):
    """Guardrails: probe prompts sampled under the policy and the base model, watched for hacking of the reward."""

    prompts: int = Field(default=8, ge=0, description="probe prompts, one clip each; 0: no guardrails, else 2 or more")
    every: int = Field(default=5, ge=1, description="pushes between readings")
    judges: dict[JudgeName, JudgeConfig] = Field(default={})  # held out: never trained on; none: the oracle
    fall: float = Field(default=5.0, gt=0, description="points the judge may fall while the trained reward rises")
    motion_floor: float = Field(default=0.5, ge=0, le=1, description="least share of the base clips' motion; 0 never")
    drift: float = Field(default=1.0, gt=0, description="points by which the base clips' scores may change")
    patience: int = Field(default=2, ge=1, description="readings in a row that must show the same before an alarm")
    action: Literal["warn", "refresh", "pause"] = Field(
        default="warn", description="at an alarm: say so, also make the policy the reference, or save and stop (exit 3)"
    )

    @model_validator(mode="after")
    def _enough_for_an_interval(self) -> GuardConfig:
        if self.prompts == 1:
            raise ValueError("prompts = 1: an interval needs 2 or more; 0 switches the guardrails off")
        return self


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


class ClusterConfig(Section):
    """How many workers of which kind, and where. Read in cluster mode only."""

    address: str = Field(
        default="", description="of a running Ray, or 'auto'; empty: RAY_ADDRESS, else a Ray of its own on this machine"
    )
    samplers: int = Field(default=2, ge=1, description="sampler processes")
    rewarders: int = Field(default=1, ge=1, description="rewarder processes")
    learners: int = Field(default=1, ge=1, description="ranks of the learner, all on one node")
    sampler_gpus: float = Field(default=0, ge=0, description="GPUs each sampler holds alone; 0 on CPU")
    rewarder_gpus: float = Field(default=0, ge=0, description="GPUs each rewarder holds; a fraction shares one")
    learner_gpus: float = Field(default=0, ge=0, description="GPUs each learner rank holds alone; 0 on CPU")
    sampler_node: str = Field(default="", description="custom resource of the nodes samplers may run on, e.g. H100")
    rewarder_node: str = Field(default="", description="custom resource of the nodes rewarders may run on")
    learner_node: str = Field(default="", description="custom resource of the learner's and exchange's node, e.g. A800")
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
        """The run's folder."""
        return self.root / self.name

    @property
    def pairs_per_push(self) -> int:
        """B of the admission rule: pairs consumed between two published versions."""
        return self.learner.pairs_per_step * self.learner.steps_per_push


def load_config(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Defaults, then the TOML `file`, then `flags` (dotted names, ``_`` or ``-``). Raises `ConfigError`."""
    if file is None:
        return parse_config("", "the defaults", flags)
    try:
        return parse_config(file.read_text("utf-8"), str(file), flags)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def parse_config(text: str, source: str, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """`load_config` of TOML `text` that comes from `source`, as errors name it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    where = {name: source for name in leaves(data)}
    for name, value in (flags or {}).items():
        dotted = name.replace("-", "_")
        _put(data, dotted, _listed(dotted, value))
        where[dotted] = f"--{name}"
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_one_line(error, where)) from None


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of everything in nested mappings that is no mapping itself."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--{dotted}: '{parent}' is a value, not a section")
    data[leaf] = value


def _listed(dotted: str, value: Any) -> Any:
    """A flag's text split at its commas where the key holds a list."""
    found = next((key for key in keys() if key.covers(dotted)), None)
    if isinstance(value, str) and found is not None and isinstance(found.default, tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _one_line(error: ValidationError, where: Mapping[str, str]) -> str:
    """The first problem of a validation error, in one line: place, what it was, what is allowed."""
    first = min(error.errors(), key=lambda one: one["type"] == "missing")  # a misspelt key is also a missing one
    parts = [str(part) for part in first["loc"] if part != "[key]"]
    name = ".".join(parts)
    inside = (place for leaf, place in where.items() if leaf.startswith(f"{name}."))
    place = where.get(name) or next(inside, None)
    label = name if place is None else place if place.startswith("--") else f"{name} in {place}"
    if first["type"] == "extra_forbidden":
        return f"{label}: unknown key; {_hint(parts)}"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{label}: a section, not a value; set one of {', '.join(f'{name}.{key}' for key in _allowed(parts))}"
    what = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    return f"{label}{what}: {first['msg'].removeprefix('Value error, ')}"


def _hint(parts: list[str]) -> str:
    """What was perhaps meant by an unknown key, or else all that is allowed where it stands."""
    allowed = _allowed(parts[:-1])
    close = get_close_matches(parts[-1], allowed, n=1)
    if close:
        return f"did you mean {'.'.join([*parts[:-1], close[0]])}?"
    elsewhere = [key.name for key in keys() if key.name.split(".")[-1] == parts[-1]]
    return f"did you mean {elsewhere[0]}?" if elsewhere else f"allowed here: {', '.join(allowed)}"


def _allowed(section: list[str]) -> list[str]:
    model: Any = RunConfig
    for part in section:
        if _entry(model) is not None:
            model = _entry(model)
            continue
        if not _is_section(model) or part not in model.model_fields:
            return []
        model = model.model_fields[part].annotation
    return sorted(model.model_fields) if _is_section(model) else []


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _entry(annotation: Any) -> Any:
    """What the entries of a table are whose names the user chooses; None for everything else."""
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


# What there is to set, and how a resolved configuration is kept and compared.

NAME = "NAME"  # in a key: a name that the user chooses


@dataclass(frozen=True)
class Key:
    """One knob: dotted name, default, kind (``float >= 0`` in words), description."""

    name: str
    default: Any
    kind: str
    description: str

    def covers(self, dotted: str) -> bool:
        """Whether `dotted` is this key, with any names in the places of `NAME`."""
        mine, asked = self.name.split("."), dotted.split(".")
        return len(mine) == len(asked) and all(own in (NAME, part) for own, part in zip(mine, asked, strict=True))


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every knob in the order of this file."""
    for name, field in model.model_fields.items():
        entry = _entry(field.annotation)
        if _is_section(field.annotation):
            yield from keys(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif _is_section(entry):
            yield from keys(entry, f"{prefix}{name}.{NAME}.")
        elif entry is not None:
            yield Key(f"{prefix}{name}.{NAME}", 1.0, "float >= 0", field.description or "")
        else:
            default = "" if field.is_required() else field.default
            yield Key(prefix + name, default, _kind(field), field.description or "")


def _kind(field: Any) -> str:
    signs = {"Ge": (">=", "ge"), "Gt": (">", "gt"), "Le": ("<=", "le"), "Lt": ("<", "lt")}
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str | int) for choice in choices):
        return " | ".join(str(choice) for choice in choices)
    base = "list" if choices else getattr(field.annotation, "__name__", str(field.annotation)).lower()
    bounds = [
        f"{signs[type(m).__name__][0]} {getattr(m, signs[type(m).__name__][1])}"
        for m in field.metadata
        if type(m).__name__ in signs
    ]
    return " ".join([{"str": "text"}.get(base, base), " and ".join(bounds)]).strip()


def to_toml(config: RunConfig) -> str:
    """The whole configuration as TOML; `load_config` reads the same back."""
    return "\n".join(_toml(config.model_dump(mode="json"))) + "\n"


def _toml(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    # A JSON string, number, truth value or list of them is also a TOML one.
    yield from (
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in data.items() if not isinstance(value, dict)
    )
    for key, value in data.items():
        if isinstance(value, dict):
            yield f"\n[{prefix}{key}]"
            yield from _toml(value, f"{prefix}{key}.")


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old value, new value) of the keys in which two configurations differ."""
    before, after = leaves(old.model_dump(mode="json")), leaves(new.model_dump(mode="json"))
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}
