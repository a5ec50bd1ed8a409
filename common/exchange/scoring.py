"""The rewarder's side of the exchange: leases clips, stores scores, selects candidates of scored groups."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan

import msgpack

from common.config import RunConfig
from common.exchange.api import ScoredCandidate, State, Submitted, WasteReason
from common.exchange.sampling import (
    DUPLICATE,
    candidates_of,
    open_prompt,
)
from common.exchange.storage.blobs import DeferredRead
from common.exchange.storage.group_blobs import clip_name, latents_name, settle, show
from common.exchange.storage.ledger import Ledger
from common.messages import Candidate, Prompt, Purpose, Score, ScoreTask, Selection
from common.reward_composition import clip_reward

OPEN = (State.SAMPLED, State.SCORING)
LONGEST_REASON = 200  # characters kept of a judge's explanation for a missing score


@dataclass(slots=True)
class ScoringQueue:
    """Leases clips and stores scores. Every method is one transaction in a batch of the commit queue.

    Methods that return blobs only open them; the caller reads them after the commit (`DeferredRead`).
    """

    ledger: Ledger
    config: RunConfig
    clock: Callable[[], float]
    select: Callable[[Sequence[float]], Selection | None]  # `Algorithm.select` of the run
    keeping: bool = False  # whether all candidates of scored training groups wait to be collected

    def lease_candidates(self, worker: str, limit: int) -> DeferredRead[list[ScoreTask]]:
        """See `RewarderExchange.lease_candidates`."""
        with self.ledger.transaction():
            self._release_expired()
            rows = self.ledger.all(
                "SELECT c.id, c.ordinal, c.candidate_index FROM candidates c JOIN groups g USING (ordinal) "
                "WHERE g.state IN (?, ?) AND c.scores IS NULL AND c.leased_by IS NULL "
                "ORDER BY g.purpose = ?, c.ordinal, c.candidate_index LIMIT ?",
                *(*OPEN, Purpose.TRAIN, limit),
            )
            prompts: dict[int, Callable[[], Prompt]] = {}
            tasks = [self._lease(row, worker, prompts) for row in rows]
            return DeferredRead(lambda: [read() for read in tasks], lambda: self._release_unread(worker, rows))

    def _release_unread(self, worker: str, rows: Sequence[sqlite3.Row]) -> None:
        """Release leases whose clips the exchange could not read. It does not count as a failed attempt."""
        with self.ledger.transaction():
            for row in rows:
                sql = "UPDATE candidates SET leased_by = NULL, lease_expires = NULL WHERE id = ? AND leased_by = ?"
                if self.ledger.run(sql, row["id"], worker):
                    return_to_sampled(self.ledger, row["ordinal"])

    def _lease(
        self, row: sqlite3.Row, worker: str, prompts: dict[int, Callable[[], Prompt]]
    ) -> Callable[[], ScoreTask]:
        ordinal, name = row["ordinal"], row["id"]
        if ordinal not in prompts:
            group = self.ledger.group(ordinal)
            prompts[ordinal] = open_prompt(self.ledger, group)
            if group["state"] == State.SAMPLED:
                self.ledger.move(ordinal, State.SCORING)
        expires = self.clock() + self.config.exchange.lease_seconds
        self.ledger.run("UPDATE candidates SET leased_by = ?, lease_expires = ? WHERE id = ?", worker, expires, name)
        prompt, index = prompts[ordinal], row["candidate_index"]
        clip = self.ledger.open(ordinal, clip_name(index))
        return lambda: ScoreTask(name, prompt(), clip.read_one().data, ordinal, index)

    def _release_expired(self) -> None:
        """Release the leases that expired. A clip whose lease expired max_attempts times fails its group."""
        for row in self.ledger.all("SELECT * FROM candidates WHERE lease_expires < ? ORDER BY id", self.clock()):
            self.ledger.run(
                "UPDATE candidates SET leased_by = NULL, lease_expires = NULL, failures = failures + 1 WHERE id = ?",
                row["id"],
            )
            if self.ledger.group(row["ordinal"])["state"] not in OPEN:
                continue
            if row["failures"] + 1 >= self.config.exchange.max_attempts:
                self._fail_group(row["ordinal"], f"scoring lease of {row['leased_by']} expired", WasteReason.FAILED)
            else:
                return_to_sampled(self.ledger, row["ordinal"])

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> list[Submitted]:
        """See `RewarderExchange.submit_scores`."""
        with self.ledger.transaction():
            return [self._submit_score(score) for score in scores]

    def _submit_score(self, score: Score) -> Submitted:
        row = self.ledger.first("SELECT * FROM candidates WHERE id = ?", score.candidate_id)
        if row is None:
            return Submitted(False, "unknown candidate")
        if row["scores"] is not None and row["reward_version"] == score.reward_version:
            return DUPLICATE
        group = self.ledger.group(row["ordinal"])
        if group["state"] not in OPEN:
            return Submitted(False, f"group is {group['state']}")
        if group["state"] == State.SAMPLED:
            self.ledger.move(row["ordinal"], State.SCORING)
        for name, value in sorted(score.values.items()):
            if not isfinite(value):
                kind = "nan" if isnan(value) else "infinite"
                why = score.problems.get(name, "")[:LONGEST_REASON]
                reason = f"{kind} score: {name}{': ' if why else ''}{why}"
                self._fail_group(row["ordinal"], reason, WasteReason.NAN)
                return Submitted(True, reason)
        self._store_score(score, group)
        return Submitted(True)

    def _store_score(self, score: Score, group: sqlite3.Row) -> None:
        ordinal = group["ordinal"]
        self.ledger.run(
            "UPDATE candidates SET scores = ?, reward_version = ?, leased_by = NULL, lease_expires = NULL WHERE id = ?",
            *(json.dumps(score.values, sort_keys=True), score.reward_version, score.candidate_id),
        )
        # Scores of different reward models are not comparable, so the newest model must score the whole group.
        self.ledger.run(
            "UPDATE candidates SET scores = NULL, reward_version = NULL WHERE ordinal = ? AND reward_version != ?",
            *(ordinal, score.reward_version),
        )
        rows = self.ledger.candidates(ordinal)
        if len(rows) == candidates_of(group, self.config) and all(row["scores"] is not None for row in rows):
            self._finish(group, rows)

    def _finish(self, group: sqlite3.Row, rows: Sequence[sqlite3.Row]) -> None:
        """Select candidates of a fully scored group, or mark it tied or done. Deletes blobs that nothing needs."""
        ordinal = group["ordinal"]
        if group["purpose"] != Purpose.TRAIN:
            self.ledger.move(ordinal, State.DONE)
            return
        rewards = [clip_reward(self.config.reward, json.loads(row["scores"])) for row in rows]
        selection = self.select(rewards)
        if selection is None:
            self.ledger.move(ordinal, State.TIED, waits=self.keeping)
        else:
            stored = asdict(selection) | {"rewards": [rewards[index] for index in selection.candidates]}
            self.ledger.move(
                ordinal,
                State.READY,
                selection=json.dumps(stored, sort_keys=True),
                priority=max(selection.weights),
                waits=self.keeping,
            )
            show(self.ledger, ordinal)
        settle(self.ledger, ordinal)

    def _fail_group(self, ordinal: int, reason: str, waste: WasteReason) -> None:
        self.ledger.waste(waste, ordinal, *(row["id"] for row in self.ledger.candidates(ordinal)))
        self.ledger.run("UPDATE candidates SET leased_by = NULL, lease_expires = NULL WHERE ordinal = ?", ordinal)
        self.ledger.keep_only(ordinal)
        self.ledger.move(ordinal, State.FAILED, reason=reason)

    def finished(self, purpose: Purpose, version: int) -> list[tuple[sqlite3.Row, sqlite3.Row]]:
        """The rows behind `HubExchange.results`: each group's with that of its candidate."""
        if purpose not in (Purpose.PROBE, Purpose.EVAL):
            raise ValueError(f"only probes and evaluations have results, not groups of purpose {purpose}")
        groups = self.ledger.all(
            "SELECT * FROM groups WHERE purpose = ? AND state = ? AND version = ? ORDER BY ordinal",
            *(purpose, State.DONE, version),
        )
        found: dict[tuple[int, str], tuple[sqlite3.Row, sqlite3.Row]] = {}
        for group in groups:
            name = msgpack.unpackb(group["prompt"])["id"]
            for row in self.ledger.candidates(group["ordinal"]):
                found[group["position"], name] = group, row
        return list(found.values())

    def unscored(self, purpose: Purpose, version: int) -> dict[tuple[int, str], str]:
        """See `HubExchange.unscored`."""
        failed = self.ledger.all(
            "SELECT * FROM groups WHERE purpose = ? AND state = ? AND required_version = ? ORDER BY ordinal",
            *(purpose, State.FAILED, version),
        )
        collected = purpose is Purpose.COLLECT  # those done are in the set, and the caller knows them
        done = {
            (group["position"], msgpack.unpackb(group["prompt"])["id"])
            for group, _ in ([] if collected else self.finished(purpose, version))
        }
        named = {(group["position"], msgpack.unpackb(group["prompt"])["id"]): group["reason"] for group in failed}
        return {name: reason for name, reason in named.items() if name not in done}

    def open_finished(self, group: sqlite3.Row, row: sqlite3.Row) -> Callable[[], ScoredCandidate]:
        """Open the blobs of one entry of `finished`; the returned function reads them. Open one entry at a time."""
        prompt, values, candidate = (
            open_prompt(self.ledger, group),
            json.loads(row["scores"]),
            open_candidate(self.ledger, row),
        )
        return lambda: ScoredCandidate(prompt(), candidate(), values)


def open_candidate(ledger: Ledger, row: sqlite3.Row) -> Callable[[], Candidate]:
    """Open the blobs of a candidate's row; the returned function reads them."""
    ordinal, index = row["ordinal"], row["candidate_index"]
    latents, clip = (ledger.open(ordinal, name) for name in (latents_name(index), clip_name(index)))

    def read() -> Candidate:
        return Candidate(
            id=row["id"],
            ordinal=ordinal,
            index=index,
            seed=row["seed"],
            policy_version=row["version"],
            latents=latents.read_one(),
            clip=clip.read_one().data,
            fps=row["fps"],
            height=row["height"],
            width=row["width"],
        )

    return read


def return_to_sampled(ledger: Ledger, ordinal: int) -> None:
    """Move a scoring group without leased clips back to `sampled`; it keeps its scores."""
    leased = ledger.first("SELECT 1 FROM candidates WHERE ordinal = ? AND leased_by IS NOT NULL", ordinal)
    if leased is None and ledger.group(ordinal)["state"] == State.SCORING:
        ledger.move(ordinal, State.SAMPLED)
