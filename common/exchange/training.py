"""The learner's side of the exchange: leases batches, commits steps, records versions and checkpoints, rolls back.

A resumed run trains like an uninterrupted one, because:

* A repeated step trains on the same batch as the first time. The table `batch_entries` keeps it through a rollback.
* A rollback to step S undoes the uses and expiries of pairs after S.
* The push count becomes S // `learner.steps_per_push`. Admission waits until training catches up with the groups
  already sampled.
* Groups that were sampled with a rolled-back version stay valid: sampling depends on weights and seeds only, and the
  resumed run reproduces both.
* Blobs are kept until every kept checkpoint is at or after the step that ended their pair.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.config import RunConfig
from common.errors import ConfigError
from common.exchange import retention, rules
from common.exchange.api import State, Work
from common.exchange.probes import ProbeQueue
from common.exchange.refresh_requests import RefreshRequests
from common.exchange.sampling import open_prompt
from common.exchange.scoring import return_to_sampled
from common.exchange.storage.blobs import DeferredRead
from common.exchange.storage.group_blobs import CONDITIONING, latents_name, settle
from common.exchange.storage.ledger import Ledger
from common.exchange.storage.ledger_reader import LedgerReader, stored_selection
from common.messages import Conditioning, Purpose, TrainingGroup, WeightVersion

ENDED = (State.TRAINED, State.EXPIRED)
LEASES = ("groups", "unsampled", "candidates")  # tables with leases


@dataclass(slots=True)
class TrainingQueue:
    """Leases selected groups and counts their uses. Every method is one transaction in a batch of the commit queue.

    Leased groups only have open blobs; the caller reads them after the commit (`DeferredRead`).
    """

    ledger: Ledger
    config: RunConfig
    clock: Callable[[], float]

    # Batches.

    def lease_batch(self, worker: str, step: int, count: int) -> DeferredRead[list[TrainingGroup]]:
        """See `LearnerExchange.lease_batch`."""
        with self.ledger.transaction():
            self._check_follows_last_commit(step)
            self._release_expired()
            self._expire_stale(step)
            batch = self._pick_batch(worker, step, count)
            expires = self.clock() + self.config.exchange.lease_seconds
            for ordinal in batch:
                if self.ledger.group(ordinal)["state"] == State.READY:
                    self.ledger.move(ordinal, State.TRAINING)
                self.ledger.update(ordinal, leased_by=worker, step=step, lease_expires=expires)
            groups = [self._open_group(self.ledger.group(ordinal)) for ordinal in batch]
            return DeferredRead(lambda: [read() for read in groups], lambda: self._release_unread(worker, step))

    def _release_unread(self, worker: str, step: int) -> None:
        with self.ledger.transaction():
            for group in self.ledger.in_state(State.TRAINING):
                if (group["leased_by"], group["step"]) == (worker, step):
                    self._return_to_ready(group["ordinal"])

    def _check_follows_last_commit(self, step: int) -> None:
        """Raises `ValueError` unless `step` directly follows the last committed step."""
        committed = self.ledger.committed_step()
        if step <= committed:
            raise ValueError(f"step {step} requested, but step {committed} is already committed: roll back first")
        if step > committed + 1:
            raise ValueError(f"step {step} requested, but step {committed + 1} is not committed yet")

    def _pick_batch(self, worker: str, step: int, count: int) -> list[int]:
        """The ordinals of a step's groups: its earlier batch if that is available, else the next ones in order."""
        rows = self.ledger.all("SELECT g.* FROM batch_entries b JOIN groups g USING (ordinal) WHERE b.step = ? "
                               "ORDER BY b.slot", step)  # fmt: skip
        before = [int(row["ordinal"]) for row in rows]
        if len(before) == count:
            if all(row["state"] == State.READY for row in rows):
                return before
            if all((row["state"], row["step"]) == (State.TRAINING, step) for row in rows):
                return before if rows[0]["leased_by"] == worker else []
        if straggler(self.ledger, self.config, step) is not None:
            return []
        batch = rules.next_batch(self._ready_groups(), count, self.config.exchange.order)
        if batch:
            self.ledger.run("DELETE FROM batch_entries WHERE step = ?", step)
        for slot, ordinal in enumerate(batch):
            self.ledger.run("INSERT INTO batch_entries (step, slot, ordinal) VALUES (?, ?, ?)", step, slot, ordinal)
        return batch

    def _ready_groups(self) -> list[rules.QueuedGroup]:
        rows = self.ledger.in_state(State.READY)
        return [
            rules.QueuedGroup(row["ordinal"], row["times_trained"], row["priority"], self._lag(row)) for row in rows
        ]

    def _lag(self, group: sqlite3.Row) -> int:
        return rules.lag(self.ledger.meta("pushes", 0), group["pushes"])

    def _release_expired(self) -> None:
        for group in self.ledger.in_state(State.TRAINING):
            if group["lease_expires"] < self.clock():
                self._return_to_ready(group["ordinal"])

    def _return_to_ready(self, ordinal: int) -> None:
        self.ledger.move(ordinal, State.READY, leased_by=None, lease_expires=None, step=None)

    def _expire_stale(self, step: int) -> None:
        """Expire pairs that are too stale. Those already trained on become `trained`."""
        if self.config.offline:
            return
        for group in self.ledger.in_state(State.READY):
            if rules.is_stale(self._lag(group), self.config.exchange.max_lag):
                self.ledger.move(
                    group["ordinal"], State.TRAINED if group["times_trained"] else State.EXPIRED, ended_at_step=step
                )

    def _open_group(self, group: sqlite3.Row) -> Callable[[], TrainingGroup]:
        ordinal, lag = group["ordinal"], self._lag(group)
        selection, rewards = stored_selection(group)
        conditioning, prompt = self.ledger.open(ordinal, CONDITIONING), open_prompt(self.ledger, group)
        latents = [self.ledger.open(ordinal, latents_name(index)) for index in selection.candidates]

        def read() -> TrainingGroup:
            embeds, image = conditioning.read()
            if embeds is None:
                raise RuntimeError(f"group {ordinal}: its conditioning has no prompt embeddings")
            return TrainingGroup(
                ordinal=ordinal,
                policy_version=group["version"],
                selection=selection,
                rewards=rewards,
                conditioning=Conditioning(embeds, image),
                latents=tuple(blob.read_one() for blob in latents),
                lag=lag,
                prompt=prompt(),
            )

        return read

    # Steps.

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """See `LearnerExchange.commit_step`."""
        with self.ledger.transaction():
            rows = self.ledger.all("SELECT * FROM batch_entries WHERE step = ?", step)
            known, asked = {row["ordinal"] for row in rows}, set(ordinals)
            if step <= self.ledger.meta("oldest_resumable_step", 0) and known < asked:
                return  # a retry of a step that cannot be rolled back any more; some of its groups may be pruned
            if not ordinals or known != asked:
                raise ValueError(f"step {step}: committed with pairs {sorted(ordinals)}, which it did not lease")
            if rows[0]["committed"]:
                return
            self._check_follows_last_commit(step)
            self.ledger.run("UPDATE batch_entries SET committed = 1 WHERE step = ?", step)
            for ordinal in ordinals:
                self._count_use(ordinal, step)

    def _count_use(self, ordinal: int, step: int) -> None:
        """Count one use, even if the lease expired during the step."""
        group = self.ledger.group(ordinal)
        times_trained = group["times_trained"] + 1
        ended = group["state"] in ENDED or times_trained >= self.config.exchange.max_times_trained
        if ended and group["state"] != State.TRAINED:
            self.ledger.move(ordinal, State.TRAINED, ended_at_step=step)
        elif group["state"] == State.TRAINING:
            self.ledger.move(ordinal, State.READY)
        self.ledger.update(ordinal, leased_by=None, lease_expires=None, step=None, times_trained=times_trained)

    # Versions.

    def announce(self, version: WeightVersion) -> None:
        """See `LearnerExchange.announce`."""
        with self.ledger.transaction():
            row = self.ledger.first("SELECT * FROM versions WHERE version = ?", version.version)
            if row is not None and (row["step"], row["pushes"]) == (version.step, version.pushes):
                return
            if version.version < self.next_version():
                raise ValueError(f"version {version.version} was used before; the next id is {self.next_version()}")
            values = (version.version, version.step, version.pushes, version.digest)
            self.ledger.run("INSERT INTO versions (version, step, pushes, digest) VALUES (?, ?, ?, ?)", *values)
            self.ledger.set_meta("pushes", version.pushes)
            self.ledger.tell(Work.SAMPLING)

    def next_version(self) -> int:
        """See `LearnerExchange.next_version`."""
        return int(self.ledger.one("SELECT COALESCE(MAX(version) + 1, 0) FROM versions")[0])

    # Checkpoints.

    def record_checkpoint(self, step: int) -> None:
        """See `LearnerExchange.record_checkpoint`. The caller takes the snapshot."""
        with self.ledger.transaction():
            last = self.ledger.committed_step()
            if not 0 < step <= last:
                raise ValueError(f"checkpoint of step {step} recorded, but the last committed step is {last}")
            self._record_checkpoint(step)

    def _record_checkpoint(self, step: int) -> None:
        """Record a checkpoint, delete the blobs of pairs that ended by the oldest kept one, and prune old rows."""
        self.ledger.run("INSERT OR IGNORE INTO checkpoints VALUES (?)", step)
        kept = rules.oldest_resumable_step(self.ledger.checkpoints(), self.config.learner.keep_checkpoints)
        oldest = max(kept, self.ledger.meta("oldest_resumable_step", 0))
        self.ledger.set_meta("oldest_resumable_step", oldest)
        rows = self.ledger.all(
            # CROSS JOIN makes SQLite start from group_blobs, which stays small; ended groups accumulate over the run.
            "SELECT DISTINCT ordinal FROM group_blobs CROSS JOIN groups USING (ordinal) "
            "WHERE state IN (?, ?) AND ended_at_step <= ?",
            *(*ENDED, oldest),
        )
        for row in rows:
            settle(self.ledger, row["ordinal"])
        retention.prune(self.ledger, self.config, oldest)
        self.ledger.tell(Work.SAMPLING)  # the disk has room again

    def rollback(self, step: int) -> None:
        """See `LearnerExchange.rollback`. The caller takes the snapshot."""
        with self.ledger.transaction():
            last, oldest = self.ledger.committed_step(), self.ledger.meta("oldest_resumable_step", 0)
            if not oldest <= step <= last:
                raise ConfigError(
                    f"{self.ledger.path}: cannot resume from step {step}; this ledger has the pairs to "
                    f"resume from steps {oldest} to {last}; restore such a checkpoint, or choose another --name"
                )
            for group in self.ledger.in_state(State.TRAINING):
                self._return_to_ready(group["ordinal"])
            self._undo_steps_after(step)
            self.ledger.run("UPDATE versions SET rolled_back = 1 WHERE step > ?", step)
            self.ledger.set_meta("pushes", step // self.config.learner.steps_per_push)
            RefreshRequests(self.ledger).roll_back(step)
            ProbeQueue(self.ledger).retire_rolled_back()
            self.ledger.run("DELETE FROM checkpoints WHERE step > ?", step)
            if step > 0:
                self._record_checkpoint(step)

    def _undo_steps_after(self, step: int) -> None:
        """Undo the uses of steps after `step`; pairs that ended after it become `ready` again."""
        rows = self.ledger.all("SELECT DISTINCT ordinal FROM batch_entries WHERE step > ? AND committed = 1", step)
        self.ledger.run("UPDATE batch_entries SET committed = 0 WHERE step > ?", step)
        for row in rows:
            still = "SELECT COUNT(*) FROM batch_entries WHERE ordinal = ? AND committed = 1"
            self.ledger.update(row["ordinal"], times_trained=self.ledger.one(still, row["ordinal"])[0])
        for group in self.ledger.in_state(*ENDED):
            if group["ended_at_step"] > step:
                self.ledger.move(group["ordinal"], State.READY, ended_at_step=None)

    # Leases of all kinds.

    def renew(self, worker: str) -> None:
        """See `Leases.renew`."""
        expires = self.clock() + self.config.exchange.lease_seconds
        with self.ledger.transaction():
            for table in LEASES:
                self.ledger.run(f"UPDATE {table} SET lease_expires = ? WHERE leased_by = ?", expires, worker)

    def release(self, worker: str) -> None:
        """See `HubExchange.release`."""
        with self.ledger.transaction():
            for table in LEASES:
                self.ledger.run(f"UPDATE {table} SET lease_expires = ? WHERE leased_by = ?", float("-inf"), worker)
            self.ledger.tell(*Work)

    def release_all(self) -> None:
        """Release all leases after a restart of the exchange. They do not count as failed attempts."""
        with self.ledger.transaction():
            for group in self.ledger.in_state(State.SAMPLING):
                self.ledger.move(group["ordinal"], State.PENDING, leased_by=None, lease_expires=None)
            for group in self.ledger.in_state(State.TRAINING):
                self._return_to_ready(group["ordinal"])
            for table in ("unsampled", "candidates"):
                sql = f"UPDATE {table} SET leased_by = NULL, lease_expires = NULL WHERE leased_by IS NOT NULL"
                self.ledger.run(sql)
            for group in self.ledger.in_state(State.SCORING):
                return_to_sampled(self.ledger, group["ordinal"])


def straggler(ledger: LedgerReader, config: RunConfig, step: int) -> int | None:
    """The oldest group under way that would be too stale after the push of `step`, so that the learner waits for it.

    None if there is none, or if `step` does not end in a push.
    """
    if config.offline or step % config.learner.steps_per_push:
        return None
    pushes, max_lag = ledger.meta("pushes", 0), config.exchange.max_lag
    for row in ledger.in_state(*rules.RUNNING):
        if row["purpose"] == Purpose.TRAIN and not rules.outlives_a_push(pushes, row["pushes"], max_lag):
            return int(row["ordinal"])
    return None
