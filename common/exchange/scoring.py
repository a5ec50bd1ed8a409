"""The rewarder's side of the exchange: clips to score, scores, and what becomes of a scored group."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from common.config import RunConfig
from common.exchange import normaliser, pairs
from common.exchange.client import ScoredCandidate, State, Submitted
from common.exchange.ledger import Ledger
from common.exchange.sampling import (
    CONDITIONING,
    DUPLICATE,
    candidates_of,
    clip_name,
    latents_name,
    read_prompt,
)
from common.messages import Array, Candidate, Prompt, Purpose, Score, ScoreTask

OPEN = (State.SAMPLED, State.SCORING)


@dataclass(slots=True)
class ScoringDesk:
    """Hands out clips and takes scores. Every method is one transaction; the caller holds the lock."""

    ledger: Ledger
    config: RunConfig
    clock: Callable[[], float]

    def lease_candidates(self, worker: str, limit: int) -> list[ScoreTask]:
        """See `Exchange.lease_candidates`. Probes and evaluations come first, then training by ordinal."""
        with self.ledger.transaction():
            self._reap()
            rows = self.ledger.all(
                "SELECT c.id, c.ordinal, c.place FROM candidates c JOIN groups g USING (ordinal) "
                "WHERE g.state IN (?, ?) AND c.scores IS NULL AND c.worker IS NULL "
                "ORDER BY g.purpose = ?, c.ordinal, c.place LIMIT ?",
                *(*OPEN, Purpose.TRAIN, limit),
            )
            prompts: dict[int, Prompt] = {}
            return [self._lease(row, worker, prompts) for row in rows]

    def _lease(self, row: sqlite3.Row, worker: str, prompts: dict[int, Prompt]) -> ScoreTask:
        ordinal = row["ordinal"]
        if ordinal not in prompts:
            group = self.ledger.group(ordinal)
            prompts[ordinal] = read_prompt(self.ledger, group)
            if group["state"] == State.SAMPLED:
                self.ledger.move(ordinal, State.SCORING)
        expires = self.clock() + self.config.exchange.lease_seconds
        self.ledger.run("UPDATE candidates SET worker = ?, expires = ? WHERE id = ?", worker, expires, row["id"])
        return ScoreTask(row["id"], prompts[ordinal], _one(self.ledger, ordinal, clip_name(row["place"])).data)

    def _reap(self) -> None:
        """Take back the leases that ran out; a clip that loses max_attempts of them fails its group."""
        for row in self.ledger.all("SELECT * FROM candidates WHERE expires < ? ORDER BY id", self.clock()):
            self.ledger.run(
                "UPDATE candidates SET worker = NULL, expires = NULL, failures = failures + 1 WHERE id = ?", row["id"]
            )
            if self.ledger.group(row["ordinal"])["state"] not in OPEN:
                continue
            if row["failures"] + 1 >= self.config.exchange.max_attempts:
                self._fail(row["ordinal"], f"scoring lease of {row['worker']} ran out", "failed")
            else:
                rest(self.ledger, row["ordinal"])

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> list[Submitted]:
        """See `Exchange.submit_scores`. Scores are taken from whoever has them: the first counts."""
        with self.ledger.transaction():
            return [self._submit(score) for score in scores]

    def _submit(self, score: Score) -> Submitted:
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
                self._fail(row["ordinal"], f"{kind} score: {name}", "nan")
                return Submitted(True, f"{kind} score: {name}")
        self._store(score, group)
        return Submitted(True)

    def _store(self, score: Score, group: sqlite3.Row) -> None:
        ordinal = group["ordinal"]
        self.ledger.run(
            "UPDATE candidates SET scores = ?, reward_version = ?, worker = NULL, expires = NULL WHERE id = ?",
            *(json.dumps(score.values, sort_keys=True), score.reward_version, score.candidate_id),
        )
        # Scores of two reward models cannot be compared: the newest model scores the whole group.
        self.ledger.run(
            "UPDATE candidates SET scores = NULL, reward_version = NULL WHERE ordinal = ? AND reward_version != ?",
            *(ordinal, score.reward_version),
        )
        rows = self.ledger.candidates(ordinal)
        if len(rows) == candidates_of(group, self.config) and all(row["scores"] is not None for row in rows):
            self._finish(group, rows)

    def _finish(self, group: sqlite3.Row, rows: Sequence[sqlite3.Row]) -> None:
        """The Nth score: pair, tie or finish the group, and let go of the blobs nobody needs now."""
        ordinal = group["ordinal"]
        if group["purpose"] != Purpose.TRAIN:
            self.ledger.move(ordinal, State.DONE)
            return
        pair = pairs.make_pair(
            ordinal,
            group["version"],
            [row["id"] for row in rows],
            self._rewards([json.loads(row["scores"]) for row in rows]),
            alpha=self.config.learner.alpha,
            min_gap=self.config.exchange.min_gap,
        )
        if pair is None:
            self.ledger.move(ordinal, State.TIED)
            self.ledger.keep_only(ordinal)
            return
        self.ledger.move(
            ordinal, State.PAIRED, winner=pair.winner, loser=pair.loser, gap=pair.gap,
            winner_reward=pair.winner_reward, loser_reward=pair.loser_reward, paired=self.clock(),
        )  # fmt: skip
        ends = [latents_name(row["place"]) for row in rows if row["id"] in (pair.winner, pair.loser)]
        self.ledger.keep_only(ordinal, [CONDITIONING, *ends])

    def _rewards(self, raw: Sequence[dict[str, float]]) -> list[float]:
        weights = self.config.reward.weights.model_dump()
        state = json.loads(self.ledger.meta("normaliser", "{}"))
        normalised, after = normaliser.normalise(self.config.reward.normaliser, raw, state)
        if after != state:
            self.ledger.set_meta("normaliser", json.dumps(after, sort_keys=True))
        return [pairs.weighted_mean(values, weights) for values in normalised]

    def _fail(self, ordinal: int, reason: str, waste: str) -> None:
        self.ledger.waste(waste, *(row["id"] for row in self.ledger.candidates(ordinal)))
        self.ledger.run("UPDATE candidates SET worker = NULL, expires = NULL WHERE ordinal = ?", ordinal)
        self.ledger.keep_only(ordinal)
        self.ledger.move(ordinal, State.FAILED, reason=reason)

    def results(self, purpose: Purpose, version: int) -> list[ScoredCandidate]:
        """See `Exchange.results`. Where a prompt was sampled twice under `version`, the later one counts."""
        if purpose is Purpose.TRAIN:
            raise ValueError("results are those of probe and eval groups; training groups become pairs")
        groups = self.ledger.all(
            "SELECT * FROM groups WHERE purpose = ? AND state = ? AND version = ? ORDER BY ordinal",
            *(purpose, State.DONE, version),
        )
        found: dict[tuple[int, str], ScoredCandidate] = {}
        for group in groups:
            prompt = read_prompt(self.ledger, group)
            for row in self.ledger.candidates(group["ordinal"]):
                scored = ScoredCandidate(prompt, _candidate(self.ledger, row), json.loads(row["scores"]))
                found[group["place"], prompt.id] = scored
        return list(found.values())


def rest(ledger: Ledger, ordinal: int) -> None:
    """A scoring group of which no clip is leased goes back to `sampled`; its scores stay."""
    leased = ledger.first("SELECT 1 FROM candidates WHERE ordinal = ? AND worker IS NOT NULL", ordinal)
    if leased is None and ledger.group(ordinal)["state"] == State.SCORING:
        ledger.move(ordinal, State.SAMPLED)


def _one(ledger: Ledger, ordinal: int, name: str) -> Array:
    (array,) = ledger.read(ordinal, name)
    if array is None:
        raise RuntimeError(f"group {ordinal}: blob {name} is empty")
    return array


def _candidate(ledger: Ledger, row: sqlite3.Row) -> Candidate:
    ordinal, place = row["ordinal"], row["place"]
    return Candidate(
        *(row["id"], ordinal, place, row["seed"], row["version"]),
        _one(ledger, ordinal, latents_name(place)),
        _one(ledger, ordinal, clip_name(place)).data,
        *(row["fps"], row["height"], row["width"]),
    )
