"""What the roles say to each other: every message of the loop, with shapes, units and ranges.

```
prompts -> SAMPLERS -> Candidate -> REWARDERS -> Score -> PreferencePair -> LEARNER -> WeightVersion -> SAMPLERS
                                                                                     StepStats, Span -> journal
```

Symbols of the shapes: L text tokens, D text width, F latent frames, C latent channels, h x w latent size.
This module imports no torch: tensors travel as `SerializedTensor` (dtype, shape, bytes); `common/weights/tensors.py`
converts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

SCHEMA_VERSION = 1
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class SerializedTensor:
    """A tensor without its library. `data` is C-contiguous, little-endian; its length is checked."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype {self.dtype!r}: allowed are {', '.join(ITEM_BYTES)}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"{self.dtype}{list(self.shape)}: no size is negative")
        expected = prod(self.shape) * ITEM_BYTES[self.dtype]
        if len(self.data) != expected:
            raise ValueError(f"{self.dtype}{list(self.shape)} needs {expected} bytes, got {len(self.data)}")


class Purpose(StrEnum):
    """Why a prompt is sampled. Only `TRAIN` groups are ever paired."""

    TRAIN = "train"
    PROBE = "probe"
    EVAL = "eval"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One (first frame, text) to animate. Source -> exchange -> sampler."""

    ordinal: int  # >= 0, monotonic: the place in the run's order of prompts
    id: str  # stable across runs, e.g. "toon-train-17"
    text: str  # non-empty
    image: bytes | None = field(default=None, repr=False)  # first frame, PNG; None for text-to-video models
    purpose: Purpose = Purpose.TRAIN
    character: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the model is conditioned on, encoded once per prompt and shared by its candidates. Sampler -> learner.

    Recorded pairs (`common/data/offline_pairs.py`) have a condition for each: one dimension more, the winner's first.
    """

    prompt_embeds: SerializedTensor  # [L, D], or [2, L, D]
    image_latent: (
        SerializedTensor | None
    )  # [1, C, h, w] or [2, 1, C, h, w], the clean first frame, VAE-scaled; None: text-to-video


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled clip. Sampler -> exchange -> rewarder (clip) and learner (latents)."""

    id: str  # `candidate_id` of it
    ordinal: int
    index: int  # 0 .. N-1
    seed: int  # with the policy version it reproduces the latents
    policy_version: int
    latents: SerializedTensor  # [F, C, h, w], x0 as the sampler's scheduler left it, VAE-scaled
    clip: bytes = field(repr=False)  # mp4, H.264
    fps: int = 8
    height: int = 0  # pixels
    width: int = 0  # pixels


def candidate_id(ordinal: int, index: int, version: int) -> str:
    """The id of a group's candidate `index`, sampled under policy `version`: ``"17-2-v3"``."""
    return f"{ordinal}-{index}-v{version}"


@dataclass(frozen=True, slots=True)
class Score:
    """Raw values of one candidate, as the reward models give them. Rewarder -> exchange."""

    candidate_id: str
    reward_version: str  # digest of the reward models' weights
    values: dict[str, float]  # dimension -> raw value (AnimeReward: 0..100)
    problems: dict[str, str] = field(default_factory=dict)  # dimension -> why its value is NaN, where that is known
    purpose: Purpose = Purpose.TRAIN  # that of the `ScoreTask`


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Best and worst of one group. Made in `common/exchange/pairs.py`, trained by the learner."""

    ordinal: int
    winner: str  # candidate id
    loser: str  # candidate id
    winner_reward: float  # R~w in [0, 1]
    loser_reward: float  # R~l in [0, 1], <= R~w
    gap: float  # alpha^R~w - alpha^R~l, >= 0
    policy_version: int  # of both candidates


@dataclass(frozen=True, slots=True)
class GroupLease:
    """Leave to sample one group. Exchange -> sampler."""

    prompt: Prompt
    worker: str
    attempt: int  # 1, 2, ...
    version: int  # the policy version all candidates of the group must have
    seeds: tuple[int, ...]  # one per candidate, a function of (run seed, ordinal, index) alone
    done: tuple[int, ...] = ()  # indices already submitted under this version


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
class TrainingPair:
    """A pair with all that the loss needs. Exchange -> learner."""

    pair: PreferencePair
    conditioning: Conditioning
    winner_latents: SerializedTensor  # [F, C, h, w]
    loser_latents: SerializedTensor  # [F, C, h, w]
    lag: int  # pushes since the pair was sampled, 0 .. max_lag


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

    version: int  # never used twice; 0 is the base model
    step: int  # optimizer steps taken
    pushes: int  # step // steps_per_push, of the current lineage
    kind: str  # "full" or "adapter"
    base: int  # the version an adapter applies to; for "full" the version itself
    tensors: tuple[TensorEntry, ...]
    digest: str  # of the whole: over the entries in name order, hex
    model: dict[str, str] = field(default_factory=dict)  # part of the base model -> fingerprint; empty: simulated


@dataclass(frozen=True, slots=True)
class StepStats:
    """One optimizer step in numbers; means are over the global batch. Learner -> journal."""

    step: int  # 1, 2, ...
    loss: float
    inside: float  # mean of the sigmoid's argument
    margin: float  # mean of R~w - R~l
    gap: float  # mean gap, before any normalisation
    winner_error: float  # mean of e_theta(w) - e_ref(w); below 0: the winners fit better than under the reference
    loser_error: float  # mean of e_theta(l) - e_ref(l)
    grad_norm: float  # before clipping
    lag: float  # mean, pushes
    lag_max: int  # largest of the batch, pushes
    reward: float  # mean of winners' and losers' R~
    seconds: float
    refreshed: bool  # the reference became the policy after this step, or, as the guardrails asked, before it
    pushed: bool  # a version was published after this step


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """Training is at its end. Learner -> journal."""

    step: int  # optimizer steps taken
    version: int  # the last one published
    weights_digest: str  # of the policy: that of its WeightVersion


@dataclass(frozen=True, slots=True)
class Span:
    """One unit of work on the time axis. Every worker -> journal."""

    worker: str
    kind: str  # "sampling", "scoring", "learning", "loading"
    began: float  # seconds since 1970
    seconds: float
    units: int = 1  # groups sampled, clips scored, steps taken, versions loaded


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """What lets a worker in: whom it wants to reach, and its own pair. All keys are Z85 text of 40 characters."""

    server: str  # public key of the services
    public: str
    secret: str = field(repr=False)
