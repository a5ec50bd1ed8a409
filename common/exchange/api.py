"""What every worker may ask of the exchange: lease work, submit results, commit steps.

One interface, two transports: `LocalExchange` implements it over the ledger, in this process; `RemoteExchange` asks the
service of one elsewhere. Every call is idempotent where a retry can happen, and returns None when there is nothing
to do now. Workers see `Exchange`; who composes a run sees `RunExchange`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from common.messages import (
    Candidate,
    Conditioning,
    GroupLease,
    Prompt,
    Purpose,
    Score,
    ScoreTask,
    SerializedTensor,
    TrainingGroup,
    WeightVersion,
)


class State(StrEnum):
    """Where a prompt group is; every admitted ordinal is in exactly one state."""

    PENDING = "pending"
    SAMPLING = "sampling"
    SAMPLED = "sampled"
    SCORING = "scoring"
    PAIRED = "paired"
    TRAINING = "training"
    TRAINED = "trained"
    TIED = "tied"
    EXPIRED = "expired"
    FAILED = "failed"
    DONE = "done"


# Where a training group waits or is worked on, in the order of the states; and how a probe or evaluation ends.
QUEUE = (State.PENDING, State.SAMPLING, State.SAMPLED, State.SCORING, State.PAIRED, State.TRAINING)
OVER = (State.DONE, State.FAILED)


class FailureKind(StrEnum):
    """Why a sampler gave a group back, as far as code tells cases apart; the reason in words is for people."""

    NON_FINITE = "non-finite"  # NaN or infinity in the latents
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to a submit: `accepted` is False for a duplicate or a lost lease, `reason` says which."""

    accepted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """One scored clip of a finished probe or evaluation group."""

    prompt: Prompt
    candidate: Candidate
    values: dict[str, float]  # raw, per dimension


class Exchange(Protocol):
    """The durable middle. All policy (order, staleness, reuse, back-pressure) lives behind these calls."""

    def lease_group(self, worker: str, version: int) -> GroupLease | None:
        """Admit or re-lease the next group for a sampler that holds `version`; None when admission says wait."""
        ...

    def submit_conditioning(self, lease: GroupLease, conditioning: Conditioning) -> Submitted:
        """Store what the group's prompt was encoded to (once per group)."""
        ...

    def submit_candidate(self, lease: GroupLease, candidate: Candidate) -> Submitted:
        """Store one candidate; the Nth moves the group to `sampled`. Idempotent on the candidate id."""
        ...

    def fail_group(self, lease: GroupLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        """Give a lease back with a reason; after max_attempts the group is `failed`."""
        ...

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        """Up to `limit` unscored clips, oldest ordinal first, mixed over prompts; empty when there are none."""
        ...

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        """Store scores; the Nth of a group pairs, ties or finishes it. A NaN score fails the candidate's group."""
        ...

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        """Exactly `count` selected groups for optimizer step `step`, else none. Stale groups expire when taken."""
        ...

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """The step has been applied to the weights: each pair's use is counted once."""
        ...

    def announce(self, version: WeightVersion) -> None:
        """A version was published: its pushes count from now on. Ids must rise."""
        ...

    def renew(self, worker: str) -> None:
        """Heartbeat: all leases of `worker` live another lease_seconds."""
        ...

    def next_version(self) -> int:
        """The lowest version id never announced."""
        ...

    def wanted_version(self) -> int:
        """The version a sampler should hold now: the one a waiting evaluation asks for, else the newest."""
        ...

    def counts(self, purpose: Purpose = Purpose.TRAIN) -> dict[State, int]:
        """Groups per state; they sum to the ordinals ever admitted with this purpose."""
        ...

    def results(self, purpose: Purpose, version: int) -> Sequence[ScoredCandidate]:
        """Scored candidates of `done` groups sampled under `version`, by ordinal and index."""
        ...


class RunExchange(Exchange, Protocol):
    """What a run needs around the workers' calls: held-out prompts, checkpoints, and how things stand."""

    @property
    def refusal(self) -> str:
        """Why the last `lease_group` returned None, naming the knob; empty when it did not."""
        ...

    def enqueue(self, prompts: Sequence[Prompt], version: int | None = None) -> None:
        """Add probe or eval groups of one candidate each; with `version`, for samplers that hold it alone."""
        ...

    def rescore_probes(self, version: int) -> None:
        """The done probes of `version` are to be scored once more."""
        ...

    def retire_probes(self) -> None:
        """Only version 0's probes are needed from now on: the others' clips go, and who waits to be sampled fails."""
        ...

    def rolled_back(self, version: int) -> bool:
        """Whether training went back to before `version`: what was seen of it is of no run's past."""
        ...

    def ask_refresh(self, version: int) -> None:
        """The reference is to become the policy at the first step boundary from `version`'s step on."""
        ...

    def refresh_due(self, step: int) -> bool:
        """Whether that boundary is now, with `step` steps taken. The same answer whenever it is asked at one step."""
        ...

    def mark(self, step: int) -> None:
        """The checkpoint of `step` is safely on disk."""
        ...

    def rollback(self, step: int) -> None:
        """Training goes on from the checkpoint of `step` (0: from the start)."""
        ...

    def current_version(self) -> int:
        """The newest announced version of the current lineage: the one to sample with. 0 is the base model."""
        ...

    def wasted(self) -> dict[str, int]:
        """Candidates sampled for nothing, by reason."""
        ...

    def failures(self) -> dict[int, str]:
        """Failed groups: ledger ordinal -> reason."""
        ...

    def bytes_on_disk(self) -> int:
        """Size of all blobs."""
        ...

    def release(self, worker: str) -> None:
        """`worker` is known to be dead: its leases run out now, as if their time were up."""
        ...

    def keep_empty_prompt(self, embeds: SerializedTensor) -> None:
        """Store the embedding [L, D] of the empty caption: samplers have the text encoder, the learner has not."""
        ...

    def empty_prompt(self) -> SerializedTensor | None:
        """What `keep_empty_prompt` stored; None while no sampler has."""
        ...

    def check(self) -> None:
        """Raise unless every admitted ordinal, use and blob is accounted for."""
        ...
