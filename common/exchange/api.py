"""The exchange's interface: lease work, submit results, commit steps.

There are two implementations: `LocalExchange` runs in this process, on the ledger; `RemoteExchange` calls the service
of another process. Calls that may be retried are idempotent. A lease call returns None or an empty sequence when there
is no work now. Every call of `LocalExchange` may also raise `StorageError`: a disk operation failed, and the call was
rolled back.

The interface is split by caller. Only the part of the workers is served over the network:

```
SamplerExchange ──┐
RewarderExchange ─┼─> WorkerExchange ─┐
LearnerExchange ──┘                   ├─> RunExchange
HubExchange ──────────────────────────┘
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from common.messages import (
    Candidate,
    Conditioning,
    Prompt,
    Purpose,
    SamplingLease,
    Score,
    ScoreTask,
    Selection,
    SerializedTensor,
    TrainingGroup,
    WeightVersion,
)
from common.rpc.interface import long_poll


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


# QUEUE: states of a training group that is not finished, in order. LOST: it ended and no step used it.
# OVER: final states of a probe or evaluation.
QUEUE = (State.PENDING, State.SAMPLING, State.SAMPLED, State.SCORING, State.READY, State.TRAINING)
LOST = (State.TIED, State.EXPIRED, State.FAILED)
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


@dataclass(frozen=True, slots=True)
class CollectedGroup:
    """All candidates of one prompt, with what training needs and with raw scores, for a candidate set."""

    ordinal: int  # of the group in the exchange
    prompt: Prompt
    conditioning: Conditioning
    candidates: tuple[Candidate, ...]  # [N]
    scores: tuple[Score, ...]  # [N], in the order of the candidates
    selection: Selection | None = None  # of a training group; None if it tied
    weights: str = ""  # digest of the policy's weights as announced; empty for the base model of a collection


class Work(StrEnum):
    """A kind of work that workers lease."""

    SAMPLING = "sampling"
    SCORING = "scoring"
    TRAINING = "training"


class Leases(Protocol):
    """The calls of every worker."""

    def renew(self, worker: str) -> None:
        """Heartbeat: extend all leases of `worker`, of every kind, to lease_seconds from now."""
        ...

    @long_poll
    def changes(self, work: Work, seen: int) -> int:
        """How often something happened that may have made `work` available, since the exchange was opened.

        For idle workers: the service answers once the number differs from `seen`, the answer of the call before, at the
        latest after a second. A worker that asked before its last lease call therefore misses no work.
        """
        ...


class SamplerExchange(Leases, Protocol):
    """The calls of a sampler."""

    def keep_empty_prompt(self, embeds: SerializedTensor) -> None:
        """Store the embedding [L, D] of the empty caption. Samplers compute it; the learner has no text encoder."""
        ...

    def wanted_version(self, held: int | None = None) -> int:
        """The version to load next: the one that a pending probe or evaluation needs, else the current version.

        For a sampler that holds version `held` it is `held` as long as an open group needs more candidates of it.
        """
        ...

    def lease_sampling(self, worker: str, version: int) -> SamplingLease | None:
        """Lease the next candidates, at most one micro-batch, to a sampler that has loaded `version`.

        Probes and evaluations come first, then open training groups of this version, the oldest first; up to N samplers
        share a group. Else a new training group is opened, if admission control allows one, `version` was not rolled
        back, and the group will be at most max_lag pushes old when its turn to be trained comes. If the result is None,
        `HubExchange.refusal` says why.

        Raises:
            ValueError: `version` was never announced. Version 0, the base model, is always known.
        """
        ...

    def submit_conditioning(self, lease: SamplingLease, conditioning: Conditioning) -> Submitted:
        """Store the encoded prompt of the group, before its last candidate. Rejected as "duplicate" or "lost lease"."""
        ...

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> Submitted:
        """Store one candidate. The group's Nth one moves it to `sampled`. Idempotent per candidate id.

        Rejected as "duplicate" or "lost lease". In the second case the candidate counts as wasted.

        Raises:
            ValueError: ordinal, index, seed or version differ from the lease; or this is the last candidate of a
                training group, whose conditioning is still missing.
        """
        ...

    def fail_sampling(self, lease: SamplingLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        """Return the unsampled candidates of a lease, with a reason. No effect if the lease is already lost.

        Other samplers may then lease them. After max_attempts failures at one candidate its group becomes `failed`.
        """
        ...


class RewarderExchange(Leases, Protocol):
    """The calls of a rewarder."""

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        """Lease up to `limit` unscored clips of fully sampled groups. Empty if there are none.

        Clips of probes and evaluations come first, then those of training groups, by ordinal and index. A call may
        return clips of several prompts.
        """
        ...

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        """Store scores. A group's Nth score makes it `ready`, `tied` or `done`; a non-finite score fails the group.

        Scores are accepted from any worker, even without a lease; the first ones count. Rejected as "unknown
        candidate", "duplicate" or "group is STATE".

        Raises:
            ConfigError: a weighted dimension has no score. Then nothing of the call is stored.
        """
        ...


class LearnerExchange(Leases, Protocol):
    """The calls of the learner (rank 0)."""

    def empty_prompt(self) -> SerializedTensor | None:
        """The embedding [L, D] from `keep_empty_prompt`; None until a sampler has stored it."""
        ...

    def rollback(self, step: int) -> None:
        """Reset the queue to the checkpoint of `step` (0: the start of the run), from which training resumes.

        Undoes the uses and expiries of later steps, marks later versions as rolled back, fails their unsampled probes
        and evaluations, and sets the push count to step // `learner.steps_per_push`. Takes a snapshot of the ledger for
        `step` and deletes those of later steps. If `current_version()` is older than that push, the learner must
        publish before it leases a batch.

        Raises:
            ConfigError: the ledger no longer has the pairs to resume from `step`.
        """
        ...

    def refresh_due(self, step: int) -> bool:
        """Whether a requested refresh is due after `step` optimizer steps. Repeated calls give the same answer.

        A rollback to before the refresh makes it due again; a rollback to before the request cancels it.
        """
        ...

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        """Lease exactly `count` selected groups for optimizer step `step` >= 1, or none. Expires stale groups first.

        There is none for a step that ends in a push as long as a group is under way that would be too stale after it:
        the learner waits for a slow sampler rather than let its work expire.

        A repeated call of the same worker for the same step returns the same groups. So does a step that is repeated
        after a rollback, if its groups are still available.

        Raises:
            ValueError: `step` does not directly follow the last committed step.
        """
        ...

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """Record that `step` was applied to the weights, and count one use of each of its groups.

        A use counts even if the lease expired during the step, because the weights already include it. Committing a
        step twice has no effect.

        Raises:
            ValueError: `ordinals` are not the groups leased for `step`, or `step` does not directly follow the last
                committed step.
        """
        ...

    def next_version(self) -> int:
        """One more than the highest version id announced so far; 0 in a new run, whose first version is the base."""
        ...

    def announce(self, version: WeightVersion) -> None:
        """Record a published version; lag is measured against its push count from now on. A retry has no effect.

        Raises:
            ValueError: the id was used before for another version. Ids must increase.
        """
        ...

    def record_checkpoint(self, step: int) -> None:
        """Record that the checkpoint of `step` is durable on disk, and take a snapshot of the ledger.

        Deletes the blobs of pairs that ended at or before the oldest of the `learner.keep_checkpoints` checkpoints,
        since no rollback goes further back.

        Raises:
            ValueError: `step` is not committed.
        """
        ...


class HubExchange(Protocol):
    """The calls of the process that runs the loop: evaluations, probes, statistics. Never served to workers."""

    def enqueue(self, prompts: Sequence[Prompt], version: int | None = None, start: int = 0) -> None:
        """Add groups that are not trained on: probes and evaluations of one candidate, collections of N.

        Candidate i of the prompt at `start` + p in `prompts` is seeded by (run seed, purpose, start + p, i); the
        purpose of a collection is `collect.seeds`.

        With `version`, only samplers that loaded it get the groups. Prompts that are already pending, running or done
        for that version are skipped, so a resumed evaluation continues. Without `version`, any sampler may take the
        groups, and only prompts that are still pending are skipped.

        Raises:
            ValueError: a prompt is a training prompt.
        """
        ...

    def results(self, purpose: Purpose, version: int) -> Sequence[ScoredCandidate]:
        """Scored candidates of the `done` groups that were sampled with `version`, in the order of `enqueue`.

        If a prompt was sampled twice with `version`, only the later candidate is included.

        Raises:
            ValueError: `purpose` is neither `Purpose.PROBE` nor `Purpose.EVAL`.
        """
        ...

    def collected(self) -> Iterator[CollectedGroup]:
        """The scored groups that were not dropped, oldest first; each is read when it is asked for.

        They are the groups of purpose `COLLECT` and, if the run keeps its candidates (`keep_candidates_bytes`), those
        of training, whatever became of them since.
        """
        ...

    def drop_collected(self, ordinal: int) -> None:
        """Delete a collected group, which is stored elsewhere by now; of a training group, what training does not need.

        A retry has no effect.
        """
        ...

    def stop_keeping(self) -> None:
        """Let no training group wait to be collected any more, neither those that wait now nor later ones."""
        ...

    def rescore_probes(self, version: int) -> None:
        """Discard the scores of the done probes of `version`, so that they are scored again.

        They are missing from `results` until then.
        """
        ...

    def retire_probes(self) -> None:
        """Keep only the probes of version 0: delete the clips of the others, and fail those still pending.

        Probes that are being sampled or scored finish first; the next call retires them.
        """
        ...

    def ask_refresh(self, version: int) -> None:
        """Request a reference refresh at the first step boundary at or after the step of `version`.

        Ignored for a version that was rolled back. A repeated request has no effect.
        """
        ...

    def rolled_back(self, version: int) -> bool:
        """Whether a rollback discarded `version`, so that measurements of it no longer describe this run."""
        ...

    def release(self, worker: str) -> None:
        """Expire all leases of `worker` now, because it is known to be dead.

        The next lease call of any worker reclaims them. An expired sampling or scoring lease counts as a failed
        attempt, so a group whose workers always die becomes `failed`.
        """
        ...

    def current_version(self) -> int:
        """The newest announced version that was not rolled back. Samplers use it. 0 is the base model."""
        ...

    def counts(self, purpose: Purpose = Purpose.TRAIN) -> dict[State, int]:
        """Number of groups in every state; the sum is the number of groups ever admitted with this purpose."""
        ...

    @property
    def refusal(self) -> str:
        """Why the last `lease_sampling` returned None, with the config key that limits it. Empty if it did not."""
        ...

    def wasted(self) -> dict[str, int]:
        """Number of wasted candidates (sampled but never used), by `WasteReason`."""
        ...

    def failures(self) -> dict[int, str]:
        """Reason of each failed group that is not pruned yet, by ledger ordinal. Without retired probes."""
        ...

    def unscored(self, purpose: Purpose, version: int) -> dict[tuple[int, str], str]:
        """Why probes, evaluations or prompts to collect for `version` failed: (prompt ordinal, prompt id) -> the last
        reason. Of prompts to collect also those that an earlier start failed at."""
        ...

    def bytes_on_disk(self) -> int:
        """Total size of all blobs in bytes."""
        ...

    def check(self) -> None:
        """Check the ledger's invariants.

        Raises:
            LedgerInvariantError: an admitted ordinal, use or blob is unaccounted for.
        """
        ...


class WorkerExchange(SamplerExchange, RewarderExchange, LearnerExchange, Protocol):
    """What the hub serves to workers."""


class RunExchange(WorkerExchange, HubExchange, Protocol):
    """All calls. A serial run plays every role with one object."""
