"""The exchange in this process: the `Exchange` calls over the ledger in a run folder.

```
            lease_group                 lease_candidates              lease_batch
 SAMPLERS <------------- pending   REWARDERS <---------- sampled   LEARNER <------- paired
          -------------> sampled             ----------> paired            -------> trained
            submit_candidate            submit_scores    | tied             commit_step
                                                         | done (probe, eval)
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from common.config import RunConfig, open_algorithm
from common.errors import ConfigError, StorageError
from common.exchange import consistency
from common.exchange.api import FailureKind, ScoredCandidate, State, Submitted
from common.exchange.probes import RETIRED, ProbeQueue
from common.exchange.sampling import RefusalReason, SamplingQueue, check_candidate
from common.exchange.scoring import ScoringQueue
from common.exchange.storage.blobs import DeferredRead, pack, raw, unpack
from common.exchange.storage.group_commit import CommitQueue
from common.exchange.storage.ledger import Ledger
from common.exchange.storage.run_lock import hold
from common.exchange.training import TrainingQueue
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

Answer = TypeVar("Answer")


class LocalExchange:
    """Implements `Exchange` (see there for the calls) and what a run needs around it. Thread-safe.

    Opening an existing ledger takes back all leases: their holders lived in the process that is gone. A resumed run
    then calls `rollback(step of its checkpoint)`, also with 0 when there is none.

    Raises `ConfigError` when `folder` is in use by another process, damaged, not to be written, or of a run with
    another seed, other prompts or other sizes of groups and steps. Every call raises `StorageError` where the disk
    refuses; the call is then undone.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        source: Callable[[int], Prompt],
        clock: Callable[[], float] = time.time,
        held: bool = False,
    ) -> None:
        """`source(ordinal)` gives the training prompt of every ordinal >= 0; `clock` gives seconds.

        Holds the folder until it is closed, unless the caller does already (`held`).
        """
        self._config = config
        self._lock = None if held else hold(folder)
        with ExitStack() as stack:
            if self._lock is not None:
                stack.callback(self._lock.close)
            try:
                self._ledger = Ledger(folder, ledger_key(config))
                stack.callback(self._ledger.close)
                self._ledger.settle_blobs()
                self._sampling = SamplingQueue(self._ledger, config, source, clock)
                self._scoring = ScoringQueue(self._ledger, config, clock, open_algorithm(config.algorithm).select)
                self._training = TrainingQueue(self._ledger, config, clock)
                self._guarding = ProbeQueue(self._ledger)
                self._turns = CommitQueue(self._ledger)
                self._do(self._training.release_all)
            except StorageError as error:
                raise ConfigError(str(error)) from None
            stack.pop_all()

    def _do(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        """A call in its turn; durable when it returns."""
        return self._turns.take(partial(call, *arguments))

    def _do_and_read(self, call: Callable[..., DeferredRead[Answer]], *arguments: Any) -> Answer:
        """A call whose answer is read when its turn is over. Where it cannot be, what it leased is put back."""
        unread = self._do(call, *arguments)
        try:
            return unread.read()
        except Exception:
            with suppress(StorageError):  # the first error is the one to tell
                self._do(unread.put_back)
            raise

    def _do_and_copy(self, call: Callable[[int], None], step: int) -> None:
        """A call that ends with a copy of the ledger as it is after it."""
        kept = self._config.learner.keep_checkpoints
        self._turns.take(partial(call, step), then=partial(self._ledger.snapshot, step, kept))

    # The interface.

    def lease_group(self, worker: str, version: int) -> GroupLease | None:
        """Probe and eval groups first; then training, as admission allows; `refusal` says why None came back.

        Training groups are only for a version of the current lineage that is at most max_lag pushes old. An unknown
        version is a `ValueError`; version 0, the base model, is always known.
        """
        return self._do_and_read(self._sampling.lease_group, worker, version)

    def submit_conditioning(self, lease: GroupLease, conditioning: Conditioning) -> Submitted:
        """Not accepted: "duplicate" or "lost lease"."""
        arrays = (conditioning.prompt_embeds, conditioning.image_latent)
        with self._ledger.blobs.staging(arrays) as (staged,):
            return self._do(self._sampling.submit_conditioning, lease, staged)

    def submit_candidate(self, lease: GroupLease, candidate: Candidate) -> Submitted:
        """Not accepted: "duplicate" or "lost lease". One that the lease did not ask for is a `ValueError`."""
        check_candidate(lease, candidate)
        with self._ledger.blobs.staging([candidate.latents], [raw(candidate.clip)]) as (latents, clip):
            return self._do(self._sampling.submit_candidate, lease, candidate, latents, clip)

    def fail_group(self, lease: GroupLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        """Back to pending, with the candidates it has; `failed` after max_attempts."""
        self._do(self._sampling.fail_group, lease, reason)

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        """Clips of complete groups only: probes and evaluations first, then training by ordinal and index."""
        return self._do_and_read(self._scoring.lease_candidates, worker, limit)

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        """Not accepted: "unknown candidate", "duplicate", or "group is STATE". A dimension that has a weight but no
        score is a `ConfigError`, and nothing of the call is stored."""
        return self._do(self._scoring.submit_scores, worker, scores)

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        """Steps count from 1. A step that is repeated after a rollback gets the groups it had before."""
        return self._do_and_read(self._training.lease_batch, worker, step, count)

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """Exactly the pairs that were leased for `step`, or a `ValueError`; a second time changes nothing."""
        self._do(self._training.commit_step, step, ordinals)

    def announce(self, version: WeightVersion) -> None:
        """A retry changes nothing; an id used before is a `ValueError`."""
        self._do(self._training.announce, version)

    def renew(self, worker: str) -> None:
        """All leases of `worker`, of any kind, last lease_seconds from now."""
        self._do(self._training.renew, worker)

    def next_version(self) -> int:
        """0 in a new run: the first version is the base model."""
        return self._do(self._training.next_version)

    def wanted_version(self) -> int:
        """See `Exchange.wanted_version`."""
        asked = self._do(self._sampling.asked_version)
        return self.current_version() if asked is None else asked

    def counts(self, purpose: Purpose = Purpose.TRAIN) -> dict[State, int]:
        """Every state is there, with 0 where no group is."""
        return self._do(self._ledger.counts, purpose)

    def results(self, purpose: Purpose, version: int) -> Sequence[ScoredCandidate]:
        """In the order of `enqueue`, one per prompt; `.prompt` is the one that was enqueued."""
        found = self._do(self._scoring.finished, purpose, version)
        return [self._do(self._scoring.open_finished, *one)() for one in found]

    # Around it.

    def enqueue(self, prompts: Sequence[Prompt], version: int | None = None) -> None:
        """Add probe or eval groups, one candidate each, seeded by (run seed, purpose, place in `prompts`, 0).

        With `version`, only a sampler that holds it is served, and what waits, is under way or done for it is not
        added again: a resumed evaluation goes on where it was. Without, the sampler that comes first decides, and
        only prompts still waiting are not added again.
        """
        self._do(self._sampling.enqueue, prompts, version)

    def rescore_probes(self, version: int) -> None:
        """Their scores are forgotten; until they have new ones they are not among the `results`."""
        self._do(self._guarding.rescore_probes, version)

    def retire_probes(self) -> None:
        """Those under way end as they would; the next call retires them."""
        self._do(self._guarding.retire_probes)

    def rolled_back(self, version: int) -> bool:
        """See `RunExchange.rolled_back`."""
        return self._do(self._guarding.rolled_back, version)

    def ask_refresh(self, version: int) -> None:
        """A version that was rolled back asks for nothing; a second time changes nothing."""
        self._do(self._guarding.ask_refresh, version)

    def refresh_due(self, step: int) -> bool:
        """A rollback to before the boundary makes the refresh due again, one to before it was asked for forgets it."""
        return self._do(self._guarding.refresh_due, step)

    def mark(self, step: int) -> None:
        """The checkpoint of `step` is safely on disk. Frees the blobs of pairs that ended by the step of the oldest
        of the `learner.keep_checkpoints` checkpoints: before it there is no way back. Keeps a copy of the ledger."""
        self._do_and_copy(self._training.mark, step)

    def rollback(self, step: int) -> None:
        """Training goes on from the checkpoint of `step` (0: from the start): what later steps did to pairs is taken
        back, later versions are lost, current pushes are step // P. `ConfigError` when the ledger has no pairs for
        that. If `current_version()` is of a step before (step // P) * P, the learner publishes before all else.
        The copies of the ledger follow: there is one of this checkpoint, and none of later ones."""
        self._do_and_copy(self._training.rollback, step)

    def current_version(self) -> int:
        """The newest announced version of the current lineage: the one to sample with. 0 is the base model."""
        return self._do(self._ledger.current_version)

    @property
    def refusal(self) -> str:
        """Why the last `lease_group` returned None, naming the knob; empty when it did not."""
        return self._sampling.refused.words

    @property
    def refused_for(self) -> RefusalReason | None:
        """`refusal` for code: its reason, None when nothing was refused."""
        return self._sampling.refused.reason

    def wasted(self) -> dict[str, int]:
        """Candidates sampled for nothing, by reason: death (their sampler was lost and the group sampled again under
        another version), late (submitted after the lease was lost), failed (group out of attempts), nan (score), damage
        (blobs lost on the disk)."""
        return self._do(self._ledger.wasted)

    def failures(self) -> dict[int, str]:
        """Failed groups that are not forgotten: ledger ordinal -> reason. Probes that were retired have not failed."""
        failed = self._do(self._ledger.in_state, State.FAILED)
        return {int(row["ordinal"]): row["reason"] for row in failed if row["reason"] != RETIRED}

    def bytes_on_disk(self) -> int:
        """Size of all blobs."""
        return self._do(self._ledger.bytes_on_disk)

    def release(self, worker: str) -> None:
        """Attempts count: a group whose samplers die every time ends in `failed`."""
        self._do(self._training.release, worker)

    def keep_empty_prompt(self, embeds: SerializedTensor) -> None:
        """See `RunExchange.keep_empty_prompt`."""
        self._do(self._ledger.set_meta, "empty_prompt", pack([embeds]))

    def empty_prompt(self) -> SerializedTensor | None:
        """See `RunExchange.empty_prompt`."""
        stored = self._do(self._ledger.meta, "empty_prompt", None)
        return None if stored is None else unpack(stored)[0]

    def check(self) -> None:
        """Raise `audit.ConservationError` unless every admitted ordinal, use and blob is accounted for."""
        self._do(consistency.check, self._ledger, self._config)

    def close(self) -> None:
        """Close the ledger and let go of the folder. Leases stay as they are until the next opening."""
        with self._turns.lock:
            self._ledger.close()
            if self._lock is not None:
                self._lock.close()


def ledger_key(config: RunConfig) -> dict[str, int | str]:
    """What a ledger's contents are a function of, but for the model (`RUN/model.json`): fixed when a run is resumed."""
    return {
        "seed": config.seed,
        "prompts": config.prompts,
        "sampler.candidates": config.sampler.candidates,
        "learner.pairs_per_step": config.learner.pairs_per_step,
        "learner.steps_per_push": config.learner.steps_per_push,
    }
