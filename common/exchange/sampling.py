"""The sampler's side of the exchange: leases candidates, stores them.

Up to N samplers share a group. It is opened under one policy version, and only samplers that hold this version continue
it. A lease is one micro-batch of the oldest open group; only if none is left, a new group is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import msgpack

from common.config import RunConfig
from common.exchange import retention
from common.exchange.admission import Refusal, admission_refusal
from common.exchange.api import State, Submitted, WasteReason, Work
from common.exchange.storage.blobs import DeferredRead, StagedBlob, raw
from common.exchange.storage.group_blobs import CONDITIONING, IMAGE, clip_name, latents_name
from common.exchange.storage.ledger import FIRST_EVALUATION, Ledger
from common.messages import Candidate, Prompt, Purpose, SamplingLease
from common.seeds import candidate_seed

WHOLE = (Purpose.TRAIN, Purpose.COLLECT)  # groups of N candidates with their conditioning
DUPLICATE = Submitted(False, "duplicate")
LOST_LEASE = Submitted(False, "lost lease")


@dataclass(slots=True)
class SamplingQueue:
    """Leases groups and stores candidates. Every method is one transaction in a batch of the commit queue.

    Methods that return blobs only open them; the caller reads them after the commit (`DeferredRead`).
    """

    ledger: Ledger
    config: RunConfig
    source: Callable[[int], Prompt]
    clock: Callable[[], float]
    refusal: Refusal | None = None  # why the last lease_sampling returned None; None if it did not

    # Leasing.

    def wanted_version(self, held: int | None) -> int:
        """See `SamplerExchange.wanted_version`."""
        if held is not None and self._open_ordinal(held) is not None:
            return held
        row = self.ledger.first(
            "SELECT required_version FROM groups WHERE state = ? AND purpose != ? "
            "AND required_version IS NOT NULL ORDER BY ordinal",
            *(State.PENDING, Purpose.TRAIN),
        )
        return self.ledger.current_version() if row is None else int(row["required_version"])

    def lease_sampling(self, worker: str, version: int) -> DeferredRead[SamplingLease | None]:
        """See `SamplerExchange.lease_sampling`."""
        self._check_known(version)
        with self.ledger.transaction():
            self._release_expired()
            self._let_go(worker, version)
            self.refusal = None
            ordinal = self._next_ordinal(version)
            if ordinal is None:
                self.refusal = admission_refusal(self.ledger, self.config, version)
                if self.refusal is not None:
                    return DeferredRead(lambda: None, lambda: None)
                ordinal = self._next_training_ordinal()
            return self._lease(ordinal, worker, version)

    def _check_known(self, version: int) -> None:
        known = self.ledger.first("SELECT 1 FROM versions WHERE version = ?", version)
        if known is None and version > max(0, retention.highest_pruned_version(self.ledger)):
            raise ValueError(f"version {version} was never announced")

    def _next_ordinal(self, version: int) -> int | None:
        """The next group that needs no admission: of probes and evaluations the lowest ordinal that this version may
        sample, then an open training group."""
        pending = self.ledger.first(
            "SELECT ordinal FROM groups WHERE state = ? AND purpose != ? AND COALESCE(required_version, ?) = ? "
            "ORDER BY ordinal",
            *(State.PENDING, Purpose.TRAIN, version, version),
        )
        opened = self._open_ordinal(version)
        if pending is None or (opened is not None and FIRST_EVALUATION <= opened < pending["ordinal"]):
            return opened
        return int(pending["ordinal"])

    def _open_ordinal(self, version: int) -> int | None:
        """The next open group of `version` with a candidate that nobody samples."""
        row = self.ledger.first(
            "SELECT ordinal FROM groups g JOIN unsampled u USING (ordinal) WHERE g.state = ? AND g.version = ? "
            "AND u.leased_by IS NULL ORDER BY g.purpose = ?, ordinal LIMIT 1",
            *(State.SAMPLING, version, Purpose.TRAIN),
        )
        return None if row is None else int(row["ordinal"])

    def _next_training_ordinal(self) -> int:
        """The lowest pending training ordinal. If none is pending, admits the next prompt of the source."""
        row = self.ledger.first(
            "SELECT ordinal FROM groups WHERE state = ? AND purpose = ? ORDER BY ordinal", State.PENDING, Purpose.TRAIN
        )
        if row is not None:
            return int(row["ordinal"])
        ordinal = self.ledger.admitted(Purpose.TRAIN)
        prompt = self.source(ordinal)
        if prompt.ordinal != ordinal or prompt.purpose is not Purpose.TRAIN:
            raise ValueError(f"source({ordinal}) returned ordinal {prompt.ordinal}, purpose {prompt.purpose}")
        self._admit(ordinal, prompt, ordinal, None)
        return ordinal

    def _lease(self, ordinal: int, worker: str, version: int) -> DeferredRead[SamplingLease | None]:
        """Lease the first micro-batch of the group that has a free candidate; opens the group if it is pending."""
        if self.ledger.group(ordinal)["state"] == State.PENDING:
            self._open(ordinal, version)
        group = self.ledger.group(ordinal)
        attempt, expires = group["attempt"] + 1, self._expires()
        self.ledger.update(ordinal, attempt=attempt, leased_by=worker, lease_expires=expires)
        indices = self._next_micro_batch(ordinal)
        for index in indices:
            self.ledger.run(
                "UPDATE unsampled SET leased_by = ?, lease_expires = ?, attempt = ? "
                "WHERE ordinal = ? AND candidate_index = ?",
                *(worker, expires, attempt, ordinal, index),
            )
        prompt, seeds, encoded = open_prompt(self.ledger, group), self._seeds(group), self._encoded(group)
        return DeferredRead(
            lambda: SamplingLease(
                replace(prompt(), ordinal=ordinal), worker, attempt, version, seeds, indices, encoded
            ),
            lambda: self._release_unread(ordinal, attempt),
        )

    def _open(self, ordinal: int, version: int) -> None:
        """Fix the version of a pending group. Candidates of another version are dropped."""
        group = self.ledger.group(ordinal)
        if group["version"] not in (None, version):
            self.drop_candidates(ordinal, WasteReason.DEATH, keep=(IMAGE, CONDITIONING))
        stored = {row["candidate_index"] for row in self.ledger.candidates(ordinal)}
        for index in set(range(candidates_of(group, self.config))) - stored:
            self.ledger.run("INSERT OR IGNORE INTO unsampled (ordinal, candidate_index) VALUES (?, ?)", ordinal, index)
        row = self.ledger.first("SELECT pushes, digest FROM versions WHERE version = ?", version)
        pushes, weights = (0, "") if row is None else (row["pushes"], row["digest"])
        self.ledger.move(ordinal, State.SAMPLING, version=version, pushes=pushes, weights=weights)

    def _next_micro_batch(self, ordinal: int) -> tuple[int, ...]:
        """Free candidates of the first slice of `sampler.micro_batch` that has one."""
        free = [row["candidate_index"] for row in self.ledger.unsampled(ordinal) if row["leased_by"] is None]
        size = self.config.sampler.micro_batch
        return tuple(index for index in free if index // size == free[0] // size)

    def _expires(self) -> float:
        return self.clock() + self.config.exchange.lease_seconds

    def _encoded(self, group: sqlite3.Row) -> bool:
        """Whether nobody needs to submit the conditioning any more."""
        return group["purpose"] not in WHOLE or self.ledger.has(group["ordinal"], CONDITIONING)

    def _release_unread(self, ordinal: int, attempt: int) -> None:
        """Release a lease whose blobs the exchange could not read. It does not count as a failed attempt."""
        with self.ledger.transaction():
            for row in self.ledger.unsampled(ordinal):
                if row["attempt"] == attempt:
                    self._unlease(row)
            self._return_to_pending(ordinal)

    def _seeds(self, group: sqlite3.Row) -> tuple[int, ...]:
        count, purpose = candidates_of(group, self.config), group["purpose"]
        if purpose == Purpose.COLLECT:
            purpose = self.config.collect.seeds
        return tuple(candidate_seed(self.config.seed, purpose, group["position"], index) for index in range(count))

    # Lost leases. An open group stays open while someone samples it, and between two leases of the worker named in its
    # `leased_by`, which comes back for the next candidate.

    def _release_expired(self) -> None:
        """Release the leases that expired; each counts as a failed attempt."""
        for row in self.ledger.all("SELECT * FROM unsampled WHERE lease_expires < ? ORDER BY ordinal, candidate_index",
                                   self.clock()):  # fmt: skip
            self._count_failure(row, f"lease of {row['leased_by']} expired")
        for group in self.ledger.in_state(State.SAMPLING):
            if group["lease_expires"] < self.clock():
                self._return_to_pending(group["ordinal"])

    def _let_go(self, worker: str, version: int) -> None:
        """The worker comes back with other weights, so it cannot go on with groups of the old ones."""
        for group in self.ledger.in_state(State.SAMPLING):
            if group["leased_by"] == worker and group["version"] != version:
                self._return_to_pending(group["ordinal"])

    def _return_to_pending(self, ordinal: int) -> None:
        """Hand an open group over to another worker that samples it; without one it becomes `pending` again."""
        for row in self.ledger.unsampled(ordinal):
            if row["leased_by"] is not None:
                self.ledger.update(ordinal, leased_by=row["leased_by"], lease_expires=row["lease_expires"])
                return
        if self.ledger.group(ordinal)["state"] == State.SAMPLING:
            self.ledger.move(ordinal, State.PENDING, leased_by=None, lease_expires=None)

    def _unlease(self, row: sqlite3.Row, failures: int = 0) -> None:
        self.ledger.run(
            "UPDATE unsampled SET leased_by = NULL, lease_expires = NULL, failures = failures + ? "
            "WHERE ordinal = ? AND candidate_index = ?",
            *(failures, row["ordinal"], row["candidate_index"]),
        )
        self.ledger.tell(Work.SAMPLING)

    def _count_failure(self, row: sqlite3.Row, reason: str) -> None:
        """End the lease of a candidate as a failed attempt. Its group becomes `failed` after max_attempts of them."""
        ordinal = row["ordinal"]
        if row["failures"] + 1 < self.config.exchange.max_attempts:
            self._unlease(row, failures=1)
            if self.ledger.group(ordinal)["leased_by"] == row["leased_by"]:
                self._return_to_pending(ordinal)
        elif self.ledger.group(ordinal)["state"] == State.SAMPLING:
            self.drop_candidates(ordinal, WasteReason.FAILED)
            self.ledger.move(ordinal, State.FAILED, leased_by=None, lease_expires=None, reason=reason)

    def drop_candidates(self, ordinal: int, reason: WasteReason, keep: Sequence[str] = ()) -> None:
        """Delete a group's candidates and its blobs except `keep`, and count the candidates as wasted."""
        self.ledger.waste(reason, ordinal, *(row["id"] for row in self.ledger.candidates(ordinal)))
        self.ledger.run("DELETE FROM candidates WHERE ordinal = ?", ordinal)
        self.ledger.keep_only(ordinal, keep)

    # Results.

    def submit_conditioning(self, lease: SamplingLease, staged: StagedBlob) -> Submitted:
        """See `SamplerExchange.submit_conditioning`. Probes and evaluations do not keep it."""
        with self.ledger.transaction():
            group = self._leased_group(lease, lease.indices)
            if group is None:
                return LOST_LEASE
            if group["purpose"] not in WHOLE:
                return Submitted(True)
            if self.ledger.has(group["ordinal"], CONDITIONING):
                return DUPLICATE
            self.ledger.attach(group["ordinal"], CONDITIONING, staged)
            return Submitted(True)

    def submit_candidate(
        self, lease: SamplingLease, candidate: Candidate, latents: StagedBlob, clip: StagedBlob
    ) -> Submitted:
        """See `SamplerExchange.submit_candidate`. The caller has validated `candidate` with `check_candidate`."""
        ledger, ordinal = self.ledger, candidate.ordinal
        with ledger.transaction():
            if ledger.first("SELECT 1 FROM candidates WHERE id = ?", candidate.id) is not None:
                return DUPLICATE
            if self._leased_group(lease, (candidate.index,)) is None:
                self._waste_late(candidate)
                return LOST_LEASE
            ledger.attach(ordinal, latents_name(candidate.index), latents)
            ledger.attach(ordinal, clip_name(candidate.index), clip)
            self._insert_candidate(candidate)
            ledger.run("DELETE FROM unsampled WHERE ordinal = ? AND candidate_index = ?", ordinal, candidate.index)
            if ledger.unsampled(ordinal):
                ledger.update(ordinal, leased_by=lease.worker, lease_expires=self._expires())
            else:
                self._finish_sampling(ledger.group(ordinal))
            return Submitted(True)

    def _waste_late(self, candidate: Candidate) -> None:
        """Count a late candidate as wasted. If its group was pruned, it may already be counted, so skip it."""
        if self.ledger.first("SELECT 1 FROM groups WHERE ordinal = ?", candidate.ordinal) is not None:
            self.ledger.waste(WasteReason.LATE, candidate.ordinal, candidate.id)

    def _insert_candidate(self, candidate: Candidate) -> None:
        self.ledger.run(
            "INSERT INTO candidates (id, ordinal, candidate_index, seed, version, fps, height, width) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(candidate.id, candidate.ordinal, candidate.index, candidate.seed, candidate.policy_version),
            *(candidate.fps, candidate.height, candidate.width),
        )

    def _finish_sampling(self, group: sqlite3.Row) -> None:
        """Move a group with all of its candidates to `sampled`."""
        ordinal = group["ordinal"]
        if not self._encoded(group):
            raise ValueError(f"group {ordinal}: its conditioning must be submitted before its last candidate")
        if group["purpose"] == Purpose.TRAIN:
            largest = max(self.ledger.meta("largest_group", 0), self.ledger.group_bytes(ordinal))
            self.ledger.set_meta("largest_group", largest)
        self.ledger.move(ordinal, State.SAMPLED, leased_by=None, lease_expires=None)

    def fail_sampling(self, lease: SamplingLease, reason: str) -> None:
        """See `SamplerExchange.fail_sampling`."""
        with self.ledger.transaction():
            for row in self.ledger.unsampled(lease.prompt.ordinal):
                if (row["leased_by"], row["attempt"]) == (lease.worker, lease.attempt):
                    self._count_failure(row, reason)

    def _leased_group(self, lease: SamplingLease, indices: Sequence[int]) -> sqlite3.Row | None:
        """The row of the leased group; None if the lease of one of these candidates is no longer current."""
        ordinal = lease.prompt.ordinal
        mine = {
            row["candidate_index"]
            for row in self.ledger.unsampled(ordinal)
            if (row["leased_by"], row["attempt"]) == (lease.worker, lease.attempt)
        }
        sql = "SELECT * FROM groups WHERE ordinal = ? AND state = ? AND version = ?"
        group = self.ledger.first(sql, ordinal, State.SAMPLING, lease.version)
        return group if mine.intersection(indices) else None

    # Probes, evaluations and collections.

    def enqueue(self, prompts: Sequence[Prompt], version: int | None, start: int) -> None:
        """See `HubExchange.enqueue`."""
        with self.ledger.transaction():
            for position, prompt in enumerate(prompts, start):
                if prompt.purpose is Purpose.TRAIN:
                    raise ValueError(f"prompt {prompt.id}: training prompts come from the source, not from enqueue")
                if not self._is_queued(prompt, position, version):
                    ordinal = FIRST_EVALUATION + sum(
                        self.ledger.admitted(one) for one in Purpose if one is not Purpose.TRAIN
                    )
                    self._admit(ordinal, prompt, position, version)

    def _is_queued(self, prompt: Prompt, position: int, version: int | None) -> bool:
        """Whether this prompt is queued at this position: pending or, with `version`, in any state but failed."""
        states = [State.PENDING] if version is None else [state for state in State if state is not State.FAILED]
        rows = self.ledger.all(
            f"SELECT prompt FROM groups WHERE purpose = ? AND position = ? AND required_version IS ? "
            f"AND state IN ({', '.join('?' * len(states))})",
            *(prompt.purpose, position, version, *states),
        )
        return any(msgpack.unpackb(row["prompt"])["id"] == prompt.id for row in rows)

    def _admit(self, ordinal: int, prompt: Prompt, position: int, required_version: int | None) -> None:
        fields = {name: getattr(prompt, name) for name in ("ordinal", "id", "text", "character", "category")}
        self.ledger.admit(ordinal, prompt.purpose, bytes(msgpack.packb(fields) or b""), position, required_version)
        if prompt.image is not None:
            self.ledger.store(ordinal, IMAGE, raw(prompt.image))


def open_prompt(ledger: Ledger, group: sqlite3.Row) -> Callable[[], Prompt]:
    """Return a function that reads a group's prompt as it was enqueued. It caches the prompt and its image."""
    fields, purpose = msgpack.unpackb(group["prompt"]), Purpose(group["purpose"])
    image = ledger.open(group["ordinal"], IMAGE) if ledger.has(group["ordinal"], IMAGE) else None

    @cache
    def read() -> Prompt:
        return Prompt(image=None if image is None else bytes(image.read_one().data), purpose=purpose, **fields)

    return read


def candidates_of(group: sqlite3.Row, config: RunConfig) -> int:
    """Number of candidates of a complete group: N for training and collections, 1 for probes and evaluations."""
    return config.sampler.candidates if group["purpose"] in WHOLE else 1


def check_candidate(lease: SamplingLease, candidate: Candidate) -> None:
    """Raises `ValueError` if the candidate's ordinal, index, seed or version does not match its lease."""
    index = candidate.index
    leased = index in lease.indices and 0 <= index < len(lease.seeds)
    if candidate.ordinal != lease.prompt.ordinal or not leased:
        raise ValueError(f"candidate {candidate.id}: not one of the leased {lease.prompt.ordinal} x {lease.indices}")
    if (candidate.seed, candidate.policy_version) != (lease.seeds[index], lease.version):
        raise ValueError(
            f"candidate {candidate.id}: sampled with seed {candidate.seed}, version {candidate.policy_version}; "
            f"the lease has seed {lease.seeds[index]}, version {lease.version}"
        )
