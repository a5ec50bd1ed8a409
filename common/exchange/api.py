"""The exchange's interface: lease work, submit results, commit steps.

There are two implementations: `LocalExchange` runs in this process, on the ledger; `RemoteExchange` calls the service
of another process. Calls that may be retried are idempotent. A lease call returns None or an empty sequence when there
is no work now.

The interface is split by caller. Only the part of the workers is served over the network:

```
SamplerExchange ──┐
RewarderExchange ─┼─> WorkerExchange ─┐
LearnerExchange ──┘                   ├─> RunExchange
HubExchange ──────────────────────────┘
```
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
    """State of a prompt group. Every admitted ordinal is in exactly one state."""

    PENDING = "pending"
    SAMPLING = "sampling"
    SAMPLED = "sampled"
    SCORING = "scoring"
    READY = "ready"
    TRAINING = "training"
    TRAINED = "trained"
    TIED = "tied"
    EXPIRED = "expired"
    FAILED = "failed"
    DONE = "done"


# QUEUE: states of a training group that is not finished, in order. OVER: final states of a probe or evaluation.
QUEUE = (State.PENDING, State.SAMPLING, State.SAMPLED, State.SCORING, State.READY, State.TRAINING)
OVER = (State.DONE, State.FAILED)


class FailureKind(StrEnum):
    """Why a sampler failed a group: the cases that code handles differently. The text reason is for people."""

    NON_FINITE = "non-finite"  # NaN or infinity in the latents
    OTHER = "other"


class WasteReason(StrEnum):
    """Why a sampled candidate was never used."""

    DEATH = "death"  # the sampler died, and the group was sampled again with another version
    LATE = "late"  # submitted after the lease was lost
    FAILED = "failed"  # the group ran out of attempts
    NAN = "nan"  # a non-finite score
    DAMAGE = "damage"  # its blobs were lost on disk


@dataclass(frozen=True, slots=True)
class Submitted:
    """The result of a submit. If `accepted` is False, `reason` gives the cause, e.g. a duplicate or a lost lease."""

    accepted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """One scored clip of a finished probe or evaluation group."""

    prompt: Prompt
    candidate: Candidate
    values: dict[str, float]  # raw, per dimension


class Leases(Protocol):
    """The call that every worker makes while it holds leases."""

    def renew(self, worker: str) -> None:
        """Heartbeat: extend all leases of `worker` to lease_seconds from now."""
        ...


class SamplerExchange(Leases, Protocol):
    """The calls of a sampler."""

    def keep_empty_prompt(self, embeds: SerializedTensor) -> None:
        """Store the embedding [L, D] of the empty caption. Samplers compute it; the learner has no text encoder."""
        ...

    def wanted_version(self) -> int:
        """The version that a sampler should load now: the one a pending evaluation needs, else the newest."""
        ...

    def lease_group(self, worker: str, version: int) -> GroupLease | None:
        """Lease the next group to a sampler that has loaded `version`. None if admission control refuses it now."""
        ...

    def submit_conditioning(self, lease: GroupLease, conditioning: Conditioning) -> Submitted:
        """Store the encoded prompt of the group, once per group."""
        ...

    def submit_candidate(self, lease: GroupLease, candidate: Candidate) -> Submitted:
        """Store one candidate. The Nth one moves the group to `sampled`. Idempotent per candidate id."""
        ...

    def fail_group(self, lease: GroupLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        """Return a lease unfinished, with a reason. After max_attempts failures the group becomes `failed`."""
        ...


class RewarderExchange(Leases, Protocol):
    """The calls of a rewarder."""

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        """Lease up to `limit` unscored clips, lowest ordinal first, across prompts. Empty if there are none."""
        ...

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        """Store scores. A group's Nth score makes it `ready`, `tied` or `done`; a non-finite score fails the group."""
        ...


class LearnerExchange(Leases, Protocol):
    """The calls of the learner (rank 0)."""

    def empty_prompt(self) -> SerializedTensor | None:
        """The embedding [L, D] from `keep_empty_prompt`; None until a sampler has stored it."""
        ...

    def rollback(self, step: int) -> None:
        """Reset the queue to the checkpoint of `step`, from which training resumes (0: from the start)."""
        ...

    def refresh_due(self, step: int) -> bool:
        """Whether a requested refresh is due after `step` optimizer steps. Repeated calls give the same answer."""
        ...

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        """Lease exactly `count` selected groups for optimizer step `step`, or none. Expires stale groups first."""
        ...

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """Record that `step` was applied to the weights, and count one use of each of its groups."""
        ...

    def next_version(self) -> int:
        """One more than the highest version id announced so far; 0 if there is none."""
        ...

    def announce(self, version: WeightVersion) -> None:
        """Record a published version; lag is measured against its push count from now on. Ids must increase."""
        ...

    def record_checkpoint(self, step: int) -> None:
        """Record that the checkpoint of `step` is durable on disk."""
        ...


class HubExchange(Protocol):
    """The calls of the process that runs the loop: evaluations, probes, statistics. Never served to workers."""

    def enqueue(self, prompts: Sequence[Prompt], version: int | None = None) -> None:
        """Add probe or eval groups of one candidate each. With `version`, only samplers that loaded it get them."""
        ...

    def results(self, purpose: Purpose, version: int) -> Sequence[ScoredCandidate]:
        """Scored candidates of the `done` groups that were sampled with `version`, by ordinal and index."""
        ...

    def rescore_probes(self, version: int) -> None:
        """Discard the scores of the done probes of `version`, so that they are scored again."""
        ...

    def retire_probes(self) -> None:
        """Keep only the probes of version 0: delete the clips of the others, and fail those still pending."""
        ...

    def ask_refresh(self, version: int) -> None:
        """Request a reference refresh at the first step boundary at or after the step of `version`."""
        ...

    def rolled_back(self, version: int) -> bool:
        """Whether a rollback discarded `version`, so that measurements of it no longer describe this run."""
        ...

    def release(self, worker: str) -> None:
        """Expire all leases of `worker` now, because it is known to be dead."""
        ...

    def current_version(self) -> int:
        """The newest announced version that was not rolled back. Samplers use it. 0 is the base model."""
        ...

    def counts(self, purpose: Purpose = Purpose.TRAIN) -> dict[State, int]:
        """Number of groups per state; the sum is the number of groups ever admitted with this purpose."""
        ...

    @property
    def refusal(self) -> str:
        """Why the last `lease_group` returned None, with the config key that limits it. Empty if it did not."""
        ...

    def wasted(self) -> dict[str, int]:
        """Number of wasted candidates (sampled but never used), by reason."""
        ...

    def failures(self) -> dict[int, str]:
        """Reason of each failed group, by ledger ordinal."""
        ...

    def bytes_on_disk(self) -> int:
        """Total size of all blobs in bytes."""
        ...

    def check(self) -> None:
        """Check the ledger's invariants; raises if an admitted ordinal, use or blob is unaccounted for."""
        ...


class WorkerExchange(SamplerExchange, RewarderExchange, LearnerExchange, Protocol):
    """What the hub serves to workers."""


class RunExchange(WorkerExchange, HubExchange, Protocol):
    """All calls. A serial run plays every role with one object."""
