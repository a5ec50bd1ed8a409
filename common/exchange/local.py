"""The in-process exchange: implements the calls of `api.py` on the ledger in a run folder.

```
          lease_sampling                lease_candidates              lease_batch
 SAMPLERS <------------- pending   REWARDERS <---------- sampled   LEARNER <------- ready
          -------------> sampled             ----------> ready             -------> trained
            submit_candidate            submit_scores    | tied             commit_step
                                                         | done (probe, eval)
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from common.config import RunConfig, open_algorithm
from common.errors import ConfigError, StorageError
from common.exchange import consistency
from common.exchange.admission import RefusalReason
from common.exchange.api import CollectedGroup, FailureKind, ScoredCandidate, State, Submitted, Work
from common.exchange.collecting import CollectionQueue
from common.exchange.probes import RETIRED, ProbeQueue
from common.exchange.refresh_requests import RefreshRequests
from common.exchange.sampling import SamplingQueue, check_candidate
from common.exchange.scoring import ScoringQueue
from common.exchange.storage.blobs import DeferredRead, pack, raw, unpack
from common.exchange.storage.group_commit import CommitQueue
from common.exchange.storage.ledger import Ledger
from common.exchange.storage.run_lock import hold
from common.exchange.training import TrainingQueue
from common.messages import (
    Candidate,
    Conditioning,
    Prompt,
    Purpose,
    SamplingLease,
    Score,
    ScoreTask,
    SerializedTensor,
    TrainingGroup,
    WeightVersion,
)

Answer = TypeVar("Answer")


class LocalExchange:
    """Implements `RunExchange`, where the calls are documented. Thread-safe.

    Opening an existing ledger releases all leases, because the process that granted them has ended. A resumed run then
    calls `rollback` with the step of its checkpoint, or with 0 if it has none.

    The constructor raises `ConfigError` if `folder` is in use by another process or not writable, or belongs to a run
    with another seed, prompts, group size, batch size or push interval, and `LedgerDamaged` if the ledger is damaged or
    blobs are missing.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        source: Callable[[int], Prompt],
        clock: Callable[[], float] = time.time,
        held: bool = False,
    ) -> None:
        """Open or create the ledger in `folder`, and lock the folder until `close`.

        Args:
            source: maps an ordinal >= 0 to its training prompt.
            clock: the time in seconds; leases expire by it.
            held: the caller already holds the folder's lock.
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
                select, keeping = open_algorithm(config.algorithm).select, config.keep_candidates_bytes > 0
                self._scoring = ScoringQueue(self._ledger, config, clock, select, keeping)
                self._training = TrainingQueue(self._ledger, config, clock)
                self._probes = ProbeQueue(self._ledger)
                self._collecting = CollectionQueue(self._ledger)
                self._refreshes = RefreshRequests(self._ledger)
                self._commit_queue = CommitQueue(self._ledger)
                self._commit(self._training.release_all)
                if not keeping:
                    self.stop_keeping()
            except StorageError as error:
                raise ConfigError(str(error)) from None
            stack.pop_all()

    def _commit(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        """Run a call through the commit queue; it is durable when this returns."""
        return self._commit_queue.run(partial(call, *arguments))

    def _commit_then_read(self, call: Callable[..., DeferredRead[Answer]], *arguments: Any) -> Answer:
        """Run a leasing call, then read the blobs after its commit. If that fails, its leases are released."""
        unread = self._commit(call, *arguments)
        try:
            return unread.read()
        except Exception:
            with suppress(StorageError):  # report the first error
                self._commit(unread.release)
            raise

    def _commit_then_snapshot(self, call: Callable[[int], None], step: int) -> None:
        """Run a call, then take a snapshot of the ledger before the next commit."""
        kept = self._config.learner.keep_checkpoints
        self._commit_queue.run(partial(call, step), then=partial(self._ledger.snapshot, step, kept))

    # Every worker.

    def renew(self, worker: str) -> None:
        """See `Leases.renew`."""
        self._commit(self._training.renew, worker)

    def changes(self, work: Work, seen: int) -> int:
        """See `Leases.changes`. Never waits."""
        return self._ledger.changes[work]

    # Samplers.

    def keep_empty_prompt(self, embeds: SerializedTensor) -> None:
        """See `SamplerExchange.keep_empty_prompt`."""
        self._commit(self._ledger.set_meta, "empty_prompt", pack([embeds]))

    def wanted_version(self, held: int | None = None) -> int:
        """See `SamplerExchange.wanted_version`."""
        return self._commit(self._sampling.wanted_version, held)

    def lease_sampling(self, worker: str, version: int) -> SamplingLease | None:
        """See `SamplerExchange.lease_sampling`."""
        return self._commit_then_read(self._sampling.lease_sampling, worker, version)

    def submit_conditioning(self, lease: SamplingLease, conditioning: Conditioning) -> Submitted:
        """See `SamplerExchange.submit_conditioning`."""
        arrays = (conditioning.prompt_embeds, conditioning.image_latent)
        with self._ledger.blobs.staging(arrays) as (staged,):
            return self._commit(self._sampling.submit_conditioning, lease, staged)

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> Submitted:
        """See `SamplerExchange.submit_candidate`."""
        check_candidate(lease, candidate)
        with self._ledger.blobs.staging([candidate.latents], [raw(candidate.clip)]) as (latents, clip):
            return self._commit(self._sampling.submit_candidate, lease, candidate, latents, clip)

    def fail_sampling(self, lease: SamplingLease, reason: str, kind: FailureKind = FailureKind.OTHER) -> None:
        """See `SamplerExchange.fail_sampling`."""
        self._commit(self._sampling.fail_sampling, lease, reason)

    # Rewarders.

    def lease_candidates(self, worker: str, limit: int) -> Sequence[ScoreTask]:
        """See `RewarderExchange.lease_candidates`."""
        return self._commit_then_read(self._scoring.lease_candidates, worker, limit)

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> Sequence[Submitted]:
        """See `RewarderExchange.submit_scores`."""
        return self._commit(self._scoring.submit_scores, worker, scores)

    # The learner.

    def empty_prompt(self) -> SerializedTensor | None:
        """See `LearnerExchange.empty_prompt`."""
        stored = self._commit(self._ledger.meta, "empty_prompt", None)
        return None if stored is None else unpack(stored)[0]

    def rollback(self, step: int) -> None:
        """See `LearnerExchange.rollback`."""
        self._commit_then_snapshot(self._training.rollback, step)

    def refresh_due(self, step: int) -> bool:
        """See `LearnerExchange.refresh_due`."""
        return self._commit(self._refreshes.is_due, step)

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        """See `LearnerExchange.lease_batch`."""
        return self._commit_then_read(self._training.lease_batch, worker, step, count)

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """See `LearnerExchange.commit_step`."""
        self._commit(self._training.commit_step, step, ordinals)

    def next_version(self) -> int:
        """See `LearnerExchange.next_version`."""
        return self._commit(self._training.next_version)

    def announce(self, version: WeightVersion) -> None:
        """See `LearnerExchange.announce`."""
        self._commit(self._training.announce, version)

    def record_checkpoint(self, step: int) -> None:
        """See `LearnerExchange.record_checkpoint`."""
        self._commit_then_snapshot(self._training.record_checkpoint, step)

    # The hub.

    def enqueue(self, prompts: Sequence[Prompt], version: int | None = None, start: int = 0) -> None:
        """See `HubExchange.enqueue`."""
        self._commit(self._sampling.enqueue, prompts, version, start)

    def results(self, purpose: Purpose, version: int) -> Sequence[ScoredCandidate]:
        """See `HubExchange.results`."""
        found = self._commit(self._scoring.finished, purpose, version)
        return [self._commit(self._scoring.open_finished, *one)() for one in found]

    def collected(self) -> Iterator[CollectedGroup]:
        """See `HubExchange.collected`."""
        for group in self._commit(self._collecting.finished):
            yield self._commit(self._collecting.open, group)()

    def drop_collected(self, ordinal: int) -> None:
        """See `HubExchange.drop_collected`."""
        self._commit(self._collecting.drop, ordinal)

    def stop_keeping(self) -> None:
        """See `HubExchange.stop_keeping`."""
        self._scoring.keeping = False
        self._commit(self._collecting.stop_keeping)

    def rescore_probes(self, version: int) -> None:
        """See `HubExchange.rescore_probes`."""
        self._commit(self._probes.rescore_probes, version)

    def retire_probes(self) -> None:
        """See `HubExchange.retire_probes`."""
        self._commit(self._probes.retire_probes)

    def ask_refresh(self, version: int) -> None:
        """See `HubExchange.ask_refresh`."""
        self._commit(self._refreshes.request, version)

    def rolled_back(self, version: int) -> bool:
        """See `HubExchange.rolled_back`."""
        return self._commit(self._ledger.is_rolled_back, version)

    def release(self, worker: str) -> None:
        """See `HubExchange.release`."""
        self._commit(self._training.release, worker)

    def current_version(self) -> int:
        """See `HubExchange.current_version`."""
        return self._commit(self._ledger.current_version)

    def counts(self, purpose: Purpose = Purpose.TRAIN) -> dict[State, int]:
        """See `HubExchange.counts`."""
        return self._commit(self._ledger.counts, purpose)

    @property
    def refusal(self) -> str:
        """See `HubExchange.refusal`."""
        refusal = self._sampling.refusal
        return "" if refusal is None else refusal.message

    @property
    def refused_for(self) -> RefusalReason | None:
        """The reason behind `refusal` as an enum; None if the last `lease_sampling` was not refused."""
        refusal = self._sampling.refusal
        return None if refusal is None else refusal.reason

    def wasted(self) -> dict[str, int]:
        """See `HubExchange.wasted`."""
        return self._commit(self._ledger.wasted)

    def failures(self) -> dict[int, str]:
        """See `HubExchange.failures`."""
        failed = self._commit(self._ledger.in_state, State.FAILED)
        return {int(row["ordinal"]): row["reason"] for row in failed if row["reason"] != RETIRED}

    def unscored(self, purpose: Purpose, version: int) -> dict[tuple[int, str], str]:
        """See `HubExchange.unscored`."""
        return self._commit(self._scoring.unscored, purpose, version)

    def bytes_on_disk(self) -> int:
        """See `HubExchange.bytes_on_disk`."""
        return self._commit(self._ledger.bytes_on_disk)

    def check(self) -> None:
        """See `HubExchange.check`."""
        self._commit(consistency.check, self._ledger, self._config)

    def close(self) -> None:
        """Close the ledger and unlock the folder. Leases stay until the ledger is opened again."""
        with self._commit_queue.lock:
            self._ledger.close()
            if self._lock is not None:
                self._lock.close()


def ledger_key(config: RunConfig) -> dict[str, int | str]:
    """Settings that must not change when a run is resumed. The model is checked separately (`RUN/model.json`)."""
    return {
        "seed": config.seed,
        "prompts": config.prompts,
        "sampler.candidates": config.sampler.candidates,
        "learner.batch_size": config.learner.batch_size,
        "learner.steps_per_push": config.learner.steps_per_push,
    }
