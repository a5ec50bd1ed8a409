"""The sampler's side of the exchange: admission, group leases, candidates."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

import msgpack

from common.config import RunConfig
from common.exchange import retention, rules
from common.exchange.api import State, Submitted, WasteReason
from common.exchange.storage.blobs import DeferredRead, StagedBlob, raw
from common.exchange.storage.group_blobs import CONDITIONING, IMAGE, clip_name, latents_name
from common.exchange.storage.ledger import FIRST_EVALUATION, Ledger
from common.exchange.storage.ledger_reader import LedgerReader
from common.messages import Candidate, GroupLease, Prompt, Purpose
from common.seeds import candidate_seed

WHOLE = (Purpose.TRAIN, Purpose.COLLECT)  # groups of N candidates with their conditioning
DUPLICATE = Submitted(False, "duplicate")
LOST_LEASE = Submitted(False, "lost lease")


class RefusalReason(StrEnum):
    """Why no training group can be sampled."""

    COLLECTING = "collecting"
    ROLLED_BACK = "rolled back"
    STALE = "stale"
    PIPELINE_FULL = "pipeline full"
    ENOUGH_PAIRS = "enough pairs"
    DISK_FULL = "disk full"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why admission control refused a lease. `message` explains it and names the config key to change."""

    reason: RefusalReason
    message: str


@dataclass(slots=True)
class SamplingQueue:
    """Leases groups and stores candidates. Every method is one transaction in a batch of the commit queue.

    Methods that return blobs only open them; the caller reads them after the commit (`DeferredRead`).
    """

    ledger: Ledger
    config: RunConfig
    source: Callable[[int], Prompt]
    clock: Callable[[], float]
    refusal: Refusal | None = None  # why the last lease_group returned None; None if it did not

    # Leasing.

    def lease_group(self, worker: str, version: int) -> DeferredRead[GroupLease | None]:
        """See `SamplerExchange.lease_group`."""
        self._check_known(version)
        with self.ledger.transaction():
            self._release_expired()
            self.refusal = None
            ordinal = self._next_evaluation_ordinal(version)
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

    def _next_evaluation_ordinal(self, version: int) -> int | None:
        """The lowest ordinal of the pending probe and eval groups that this version may sample."""
        row = self.ledger.first(
            "SELECT ordinal FROM groups WHERE state = ? AND purpose != ? AND COALESCE(required_version, ?) = ? "
            "ORDER BY ordinal",
            *(State.PENDING, Purpose.TRAIN, version, version),
        )
        return None if row is None else int(row["ordinal"])

    def required_version(self) -> int | None:
        """The version needed by the oldest pending probe or eval group that names one; None if there is none."""
        row = self.ledger.first(
            "SELECT required_version FROM groups WHERE state = ? AND purpose != ? "
            "AND required_version IS NOT NULL ORDER BY ordinal",
            *(State.PENDING, Purpose.TRAIN),
        )
        return None if row is None else int(row["required_version"])

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

    def _lease(self, ordinal: int, worker: str, version: int) -> DeferredRead[GroupLease | None]:
        ledger = self.ledger
        group = ledger.group(ordinal)
        if group["version"] not in (None, version):
            self.drop_candidates(ordinal, WasteReason.DEATH, keep=(IMAGE, CONDITIONING))
        row = ledger.first("SELECT pushes, digest FROM versions WHERE version = ?", version)
        attempt = group["attempt"] + 1
        expires = self.clock() + self.config.exchange.lease_seconds
        pushes, weights = (0, "") if row is None else (row["pushes"], row["digest"])
        ledger.move(
            ordinal,
            State.SAMPLING,
            version=version,
            pushes=pushes,
            weights=weights,
            leased_by=worker,
            lease_expires=expires,
            attempt=attempt,
        )
        prompt, seeds = open_prompt(ledger, group), self._seeds(group)
        done = tuple(row["candidate_index"] for row in ledger.candidates(ordinal))
        return DeferredRead(
            lambda: GroupLease(replace(prompt(), ordinal=ordinal), worker, attempt, version, seeds, done),
            lambda: self._release_unread(ordinal, attempt),
        )

    def _release_unread(self, ordinal: int, attempt: int) -> None:
        """Release a lease whose blobs the exchange could not read. It does not count as a failed attempt."""
        with self.ledger.transaction():
            group = self.ledger.group(ordinal)
            if (group["state"], group["attempt"]) == (State.SAMPLING, attempt):
                self.ledger.move(ordinal, State.PENDING, leased_by=None, lease_expires=None)

    def _seeds(self, group: sqlite3.Row) -> tuple[int, ...]:
        count, purpose = candidates_of(group, self.config), group["purpose"]
        if purpose == Purpose.COLLECT:
            purpose = self.config.collect.seeds
        return tuple(candidate_seed(self.config.seed, purpose, group["position"], index) for index in range(count))

    def _release_expired(self) -> None:
        """Release the leases that expired; each counts as a failed attempt."""
        for group in self.ledger.in_state(State.SAMPLING):
            if group["lease_expires"] < self.clock():
                self._count_failure(group, f"lease of {group['leased_by']} expired")

    def _count_failure(self, group: sqlite3.Row, reason: str) -> None:
        """End a lease as a failed attempt: the group becomes `pending`, or `failed` after max_attempts of them."""
        failures = group["failures"] + 1
        if failures < self.config.exchange.max_attempts:
            self.ledger.move(group["ordinal"], State.PENDING, leased_by=None, lease_expires=None, failures=failures)
            return
        self.drop_candidates(group["ordinal"], WasteReason.FAILED)
        self.ledger.move(
            group["ordinal"], State.FAILED, leased_by=None, lease_expires=None, failures=failures, reason=reason
        )

    def drop_candidates(self, ordinal: int, reason: WasteReason, keep: Sequence[str] = ()) -> None:
        """Delete a group's candidates and its blobs except `keep`, and count the candidates as wasted."""
        self.ledger.waste(reason, ordinal, *(row["id"] for row in self.ledger.candidates(ordinal)))
        self.ledger.run("DELETE FROM candidates WHERE ordinal = ?", ordinal)
        self.ledger.keep_only(ordinal, keep)

    # Results.

    def submit_conditioning(self, lease: GroupLease, staged: StagedBlob) -> Submitted:
        """See `SamplerExchange.submit_conditioning`. Probes and evaluations do not keep it."""
        with self.ledger.transaction():
            group = self._leased_group(lease)
            if group is None:
                return LOST_LEASE
            if group["purpose"] not in WHOLE:
                return Submitted(True)
            if self.ledger.has(group["ordinal"], CONDITIONING):
                return DUPLICATE
            self.ledger.attach(group["ordinal"], CONDITIONING, staged)
            return Submitted(True)

    def submit_candidate(
        self, lease: GroupLease, candidate: Candidate, latents: StagedBlob, clip: StagedBlob
    ) -> Submitted:
        """See `SamplerExchange.submit_candidate`. The caller has validated `candidate` with `check_candidate`."""
        ledger, ordinal = self.ledger, candidate.ordinal
        with ledger.transaction():
            group = self._leased_group(lease)
            if ledger.first("SELECT 1 FROM candidates WHERE id = ?", candidate.id) is not None:
                return DUPLICATE
            if group is None:
                self._waste_late(candidate)
                return LOST_LEASE
            ledger.attach(ordinal, latents_name(candidate.index), latents)
            ledger.attach(ordinal, clip_name(candidate.index), clip)
            self._insert_candidate(candidate)
            if len(ledger.candidates(ordinal)) == candidates_of(group, self.config):
                self._finish_sampling(group)
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
        if group["purpose"] in WHOLE and not self.ledger.has(ordinal, CONDITIONING):
            raise ValueError(f"group {ordinal}: its conditioning must be submitted before its last candidate")
        if group["purpose"] == Purpose.TRAIN:
            largest = max(self.ledger.meta("largest_group", 0), self.ledger.group_bytes(ordinal))
            self.ledger.set_meta("largest_group", largest)
        self.ledger.move(ordinal, State.SAMPLED, leased_by=None, lease_expires=None)

    def fail_group(self, lease: GroupLease, reason: str) -> None:
        """See `SamplerExchange.fail_group`."""
        with self.ledger.transaction():
            group = self._leased_group(lease)
            if group is not None:
                self._count_failure(group, reason)

    def _leased_group(self, lease: GroupLease) -> sqlite3.Row | None:
        """The row of the leased group; None if the lease is no longer current."""
        sql = "SELECT * FROM groups WHERE ordinal = ? AND state = ? AND leased_by = ? AND attempt = ? AND version = ?"
        return self.ledger.first(sql, lease.prompt.ordinal, State.SAMPLING, lease.worker, lease.attempt, lease.version)

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


def admission_refusal(ledger: LedgerReader, config: RunConfig, version: int) -> Refusal | None:
    """Why a sampler with `version` cannot be given a training group now; None if it can."""
    if config.collect.prompts:
        return Refusal(RefusalReason.COLLECTING, f"collect.prompts = {config.collect.prompts}: the run does not train")
    pushes = ledger.meta("pushes", 0)
    return _version_refusal(ledger, config, version, pushes) or _load_refusal(ledger, config, pushes)


def _version_refusal(ledger: LedgerReader, config: RunConfig, version: int, pushes: int) -> Refusal | None:
    max_lag = config.exchange.max_lag
    row = ledger.first("SELECT pushes, rolled_back FROM versions WHERE version = ?", version)
    if row is not None and row["rolled_back"]:
        message = f"version {version} was rolled back: load the newest version first"
        return Refusal(RefusalReason.ROLLED_BACK, message)
    lag = rules.lag(pushes, 0 if row is None else row["pushes"])
    if not config.offline and rules.is_stale(lag, max_lag):
        message = f"version {version} is more than exchange.max_lag = {max_lag} pushes old"
        return Refusal(RefusalReason.STALE, message)
    return None


def _load_refusal(ledger: LedgerReader, config: RunConfig, pushes: int) -> Refusal | None:
    exchange, bounds = config.exchange, _bounds(config)
    load = ledger.load(exchange.max_times_trained)
    if load.running >= exchange.pipeline_depth:
        message = f"exchange.pipeline_depth = {exchange.pipeline_depth} groups are in progress"
        return Refusal(RefusalReason.PIPELINE_FULL, message)
    if rules.capacity(bounds, load, pushes) < 1:
        last = (exchange.max_lag + pushes + 1) * config.groups_per_push >= bounds.total
        knob = f"steps = {config.steps}" if last else f"exchange.max_lag = {exchange.max_lag}"
        what = "the rest of the run" if last else "the next pushes"
        return Refusal(RefusalReason.ENOUGH_PAIRS, f"{knob}: enough pairs for {what} exist or are in progress")
    sampling = ledger.counts(Purpose.TRAIN)[State.SAMPLING]
    if not rules.disk_has_room(ledger.bytes_on_disk(), ledger.meta("largest_group", 0), sampling, exchange.max_bytes):
        message = f"exchange.max_bytes = {exchange.max_bytes}: the blobs use all of it until a checkpoint frees some"
        return Refusal(RefusalReason.DISK_FULL, message)
    return None


def _bounds(config: RunConfig) -> rules.Bounds:
    exchange, learner = config.exchange, config.learner
    return rules.Bounds(
        pipeline_depth=exchange.pipeline_depth,
        max_lag=exchange.max_lag,
        batch_size=learner.batch_size,
        groups_per_push=config.groups_per_push,
        max_times_trained=exchange.max_times_trained,
        total=config.steps * learner.batch_size,
    )


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


def check_candidate(lease: GroupLease, candidate: Candidate) -> None:
    """Raises `ValueError` if the candidate's ordinal, index, seed or version does not match its lease."""
    index = candidate.index
    if candidate.ordinal != lease.prompt.ordinal or not 0 <= index < len(lease.seeds):
        raise ValueError(f"candidate {candidate.id}: not one of group {lease.prompt.ordinal} x {len(lease.seeds)}")
    if (candidate.seed, candidate.policy_version) != (lease.seeds[index], lease.version):
        raise ValueError(
            f"candidate {candidate.id}: sampled with seed {candidate.seed}, version {candidate.policy_version}; "
            f"the lease has seed {lease.seeds[index]}, version {lease.version}"
        )
