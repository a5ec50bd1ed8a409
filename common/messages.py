"""The messages between roles: every field with shape, unit and range.

```
prompts -> SAMPLERS -> Candidate -> REWARDERS -> Score -> Selection -> LEARNER -> WeightVersion -> SAMPLERS
                                                                                     StepStats, Span -> journal
```

Shape symbols: L text tokens, D text width, F latent frames, C latent channels, h x w latent size.
This module imports no torch: tensors are sent as `SerializedTensor` (dtype, shape, bytes), which
`common/weights/tensors.py` converts. Field names are part of the wire format and of the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite, prod

SCHEMA_VERSION = 1
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class SerializedTensor:
    """A tensor independent of any library. `data` is C-contiguous and little-endian; its length is checked."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype {self.dtype!r}: allowed are {', '.join(ITEM_BYTES)}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"{self.dtype}{list(self.shape)}: sizes must not be negative")
        expected = prod(self.shape) * ITEM_BYTES[self.dtype]
        if len(self.data) != expected:
            raise ValueError(f"{self.dtype}{list(self.shape)} needs {expected} bytes, got {len(self.data)}")


class Purpose(StrEnum):
    """Why a prompt is sampled. Only `TRAIN` groups are ever trained on."""

    TRAIN = "train"
    PROBE = "probe"
    EVAL = "eval"
    COLLECT = "collect"  # for a candidate set: N candidates, all kept


@dataclass(frozen=True, slots=True)
class Prompt:
    """A first frame and a text to animate. Source -> exchange -> sampler."""

    ordinal: int  # >= 0: position in the run's sequence of prompts
    id: str  # stable across runs, e.g. "toon-train-17"
    text: str  # non-empty
    image: bytes | None = field(default=None, repr=False)  # first frame, PNG; None for text-to-video models
    purpose: Purpose = Purpose.TRAIN
    character: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The encoded conditions of one prompt, shared by its candidates. Sampler -> learner.

    Offline pairs (`common/data/offline_pairs.py`) have one condition per candidate, so one more dimension: [N, ...].
    """

    prompt_embeds: SerializedTensor  # [L, D], or [N, L, D]
    image_latent: (
        SerializedTensor | None
    )  # [1, C, h, w] or [N, 1, C, h, w], the clean first frame, VAE-scaled; None: text-to-video


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled clip. Sampler -> exchange -> rewarder (clip) and learner (latents)."""

    id: str  # see `candidate_id`
    ordinal: int
    index: int  # 0 .. N-1
    seed: int  # together with the policy version it reproduces the latents
    policy_version: int
    latents: SerializedTensor  # [F, C, h, w], the scheduler's final x0, VAE-scaled
    clip: bytes = field(repr=False)  # mp4, H.264
    fps: int = 8
    height: int = 0  # pixels
    width: int = 0  # pixels


def candidate_id(ordinal: int, index: int, version: int) -> str:
    """The id of a group's candidate `index`, sampled under policy `version`: ``"17-2-v3"``."""
    return f"{ordinal}-{index}-v{version}"


@dataclass(frozen=True, slots=True)
class Score:
    """The reward models' raw values for one candidate. Rewarder -> exchange."""

    candidate_id: str
    reward_version: str  # digest of the reward models' weights
    values: dict[str, float]  # dimension -> raw value (AnimeReward: 0..100)
    problems: dict[str, str] = field(default_factory=dict)  # dimension -> why its value is NaN, where that is known
    purpose: Purpose = Purpose.TRAIN  # that of the `ScoreTask`


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates that an algorithm keeps of a scored group (`learner/algorithms/base.py`). Opaque to the
    exchange."""

    candidates: tuple[int, ...]  # indices 0 .. N-1 in the order that the loss expects, none twice
    weights: tuple[float, ...]  # one per kept candidate, finite

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.weights) or len(set(self.candidates)) != len(self.candidates):
            raise ValueError(f"{self}: one weight per kept candidate, no candidate twice")
        if not self.candidates or not all(isfinite(weight) for weight in self.weights):
            raise ValueError(f"{self}: at least one candidate, finite weights")


@dataclass(frozen=True, slots=True)
class SamplingLease:
    """A lease to sample some candidates of one group: one micro-batch. Exchange -> sampler."""

    prompt: Prompt
    worker: str
    attempt: int  # 1, 2, ...: counts the leases of the group
    version: int  # the policy version that all candidates of the group must have
    seeds: tuple[int, ...]  # of all N candidates, a function of (run seed, ordinal, index)
    indices: tuple[int, ...]  # the candidates to sample, ascending
    encoded: bool = False  # whether the group's conditioning is already stored


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """One clip to score. Exchange -> rewarder.

    Do not parse `candidate_id`: what it is made of is in `ordinal` and `index`.
    """

    candidate_id: str
    prompt: Prompt
    clip: bytes = field(repr=False)
    ordinal: int = 0  # of its group in the exchange; `prompt.ordinal` counts probes and evaluations separately
    index: int = 0  # 0 .. N-1, which candidate of its group

    @property
    def purpose(self) -> Purpose:
        """Why the clip was sampled."""
        return self.prompt.purpose


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """A selected group with all that the loss needs. Exchange -> learner. k candidates were kept."""

    ordinal: int
    policy_version: int  # of all candidates
    selection: Selection
    rewards: tuple[float, ...]  # R~ in [0, 1] of each kept candidate, [k]
    conditioning: Conditioning
    latents: tuple[SerializedTensor, ...]  # [F, C, h, w] of each kept candidate, [k]
    lag: int  # pushes since the group was sampled, 0 .. max_lag
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a published version."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    digest: str  # of the tensor's bytes (`common/digests.py`), hex


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """The manifest of one published set of weights. Learner -> samplers."""

    version: int  # never reused; 0 is the base model
    step: int  # optimizer steps taken
    pushes: int  # step // steps_per_push, of the current lineage
    kind: str  # "full" or "adapter"
    base: int  # the version an adapter applies to; for "full" the version itself
    tensors: tuple[TensorEntry, ...]
    digest: str  # over all entries in name order, hex
    model: dict[str, str] = field(default_factory=dict)  # part of the base model -> fingerprint; empty if simulated


@dataclass(frozen=True, slots=True)
class StepStats:
    """Statistics of one optimizer step. Means are over the global batch. Learner -> journal."""

    step: int  # 1, 2, ...
    loss: float
    grad_norm: float  # before clipping
    lr: float  # learning rate of the step
    lag: float  # mean, pushes
    lag_max: int  # largest of the batch, pushes
    reward: float  # mean R~ of the kept candidates
    seconds: float
    refreshed: bool  # the reference moved after this step, or, as the guardrails asked, before it
    pushed: bool  # a version was published after this step
    metrics: dict[str, float]  # the algorithm's own figures (`Algorithm.metrics`)


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """Training has finished. Learner -> journal."""

    step: int  # optimizer steps taken
    version: int  # the last published version
    weights_digest: str  # of the policy; equals its WeightVersion's digest


@dataclass(frozen=True, slots=True)
class Span:
    """The time of one unit of work. Every worker -> journal."""

    worker: str
    kind: str  # "sampling", "scoring", "learning", "loading"
    began: float  # seconds since 1970
    seconds: float
    units: int = 1  # candidates sampled, clips scored, steps taken, versions loaded


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log record of a process. Every worker -> hub."""

    created: float  # seconds since 1970
    level: int  # of `logging`: 20 is INFO, 30 WARNING
    logger: str
    message: str  # with the traceback, if there is one


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """A worker's CURVE keys: the server's public key and its own pair. All are Z85 text of 40 characters."""

    server: str  # public key of the services
    public: str
    secret: str = field(repr=False)
