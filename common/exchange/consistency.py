"""Invariants of the ledger: each admitted ordinal is in exactly one state; blobs and use counts match their records."""

from __future__ import annotations

import sqlite3

from common.config import RunConfig
from common.exchange.api import State
from common.exchange.sampling import candidates_of
from common.exchange.storage.group_blobs import CONDITIONING, clip_name, latents_name, may_train
from common.exchange.storage.ledger import FIRST_EVALUATION, Ledger
from common.exchange.storage.ledger_reader import stored_selection
from common.messages import Purpose

FULL = (
    State.SAMPLED,
    State.SCORING,
    State.READY,
    State.TRAINING,
    State.TRAINED,
    State.EXPIRED,
    State.TIED,
    State.DONE,
)


class LedgerInvariantError(RuntimeError):
    """An invariant of the ledger is violated; the message names it."""


def check(ledger: Ledger, config: RunConfig) -> None:
    """Raises `LedgerInvariantError` at the first violated invariant."""
    _check_states(ledger)
    _check_times_trained(ledger, config)
    _check_blobs(ledger)
    _check_unsampled(ledger, config)
    for group in ledger.in_state(*FULL):
        ordinal, state = group["ordinal"], State(group["state"])
        stored = len(ledger.candidates(ordinal))
        _demand(stored == candidates_of(group, config), f"group {ordinal} is {state} with {stored} candidates")
        if may_train(ledger, group):
            _check_selected(ledger, group)
        if group["waits"]:
            _check_whole(ledger, group, stored)


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise LedgerInvariantError(message)


def _check_states(ledger: Ledger) -> None:
    for purpose in Purpose:
        total, admitted = sum(ledger.counts(purpose).values()), ledger.admitted(purpose)
        _demand(total == admitted, f"{purpose}: {admitted} groups were admitted, the states sum to {total}")
    sql = "SELECT COUNT(*), COALESCE(MAX(ordinal) + 1, 0) FROM groups WHERE ordinal < ? AND purpose = ?"
    here, frontier = ledger.one(sql, FIRST_EVALUATION, Purpose.TRAIN)
    count = here + ledger.one("SELECT COALESCE(SUM(count), 0) FROM archive WHERE kind = ?", Purpose.TRAIN)[0]
    _demand(count == frontier, f"train: ordinals end at {frontier}, but only {count} of them exist")


def _check_times_trained(ledger: Ledger, config: RunConfig) -> None:
    rows = ledger.all(
        "SELECT g.ordinal, g.state, g.times_trained, COUNT(b.step) AS committed FROM groups g "
        "LEFT JOIN batch_entries b ON b.ordinal = g.ordinal AND b.committed = 1 GROUP BY g.ordinal"
    )
    for row in rows:
        name, times = f"group {row['ordinal']} ({row['state']})", row["times_trained"]
        _demand(times == row["committed"], f"{name}: trained {times} times, but in {row['committed']} committed steps")
        _demand(times <= config.exchange.max_times_trained, f"{name}: trained {times} times")
        _demand((row["state"] == State.TRAINED) <= (times > 0), f"{name}: no step used it")
    for table in ("batch_entries", "unsampled", "candidates", "group_blobs"):
        stray = ledger.first(f"SELECT ordinal FROM {table} WHERE ordinal NOT IN (SELECT ordinal FROM groups)")
        _demand(stray is None, f"group {stray and stray['ordinal']}: deleted, but its {table} remain")
    sql = "SELECT step FROM batch_entries GROUP BY step HAVING MIN(committed) != MAX(committed)"
    half = ledger.first(sql)
    _demand(half is None, f"step {half and half['step']}: only partly committed")


def _check_unsampled(ledger: Ledger, config: RunConfig) -> None:
    """Every candidate of an open group is either stored or missing; nobody samples for a group that is not open."""
    for group in ledger.in_state(State.SAMPLING):
        missing = [row["candidate_index"] for row in ledger.unsampled(group["ordinal"])]
        stored = [row["candidate_index"] for row in ledger.candidates(group["ordinal"])]
        whole = sorted(missing + stored) == list(range(candidates_of(group, config)))
        _demand(whole and bool(missing), f"group {group['ordinal']}: sampling, with {stored} stored, {missing} missing")
        _demand(group["leased_by"] is not None, f"group {group['ordinal']}: sampling, but nobody holds it")
    sql = "SELECT ordinal FROM unsampled JOIN groups USING (ordinal) WHERE state != ? AND unsampled.leased_by NOT NULL"
    stray = ledger.first(sql, State.SAMPLING)
    _demand(stray is None, f"group {stray and stray['ordinal']}: not open, but candidates of it are being sampled")


def _check_blobs(ledger: Ledger) -> None:
    stray = ledger.first("SELECT digest FROM blobs WHERE digest NOT IN (SELECT digest FROM group_blobs)")
    _demand(stray is None, f"blob {stray and stray['digest']}: no group needs it")
    stored = "SELECT DISTINCT g.digest, b.size, b.file FROM group_blobs g LEFT JOIN blobs b USING (digest)"
    for row in ledger.all(stored):
        path = ledger.blobs.folder / (row["file"] or row["digest"])
        size = path.stat().st_size if path.exists() else None
        _demand(size is not None and size == row["size"], f"{path}: {size} bytes on disk, {row['size']} in the ledger")


def _check_selected(ledger: Ledger, group: sqlite3.Row) -> None:
    ordinal, kept = group["ordinal"], stored_selection(group)[0].candidates
    indices = {row["candidate_index"] for row in ledger.candidates(ordinal)}
    _demand(indices >= set(kept), f"group {ordinal}: selected {kept}, which are not its candidates")
    needed = {CONDITIONING, *map(latents_name, kept)}
    lost = needed.difference(ledger.names(ordinal))
    _demand(not lost, f"group {ordinal}: blobs {', '.join(sorted(lost))} are missing, but it may still be trained on")


def _check_whole(ledger: Ledger, group: sqlite3.Row, count: int) -> None:
    needed = {CONDITIONING, *(name(index) for index in range(count) for name in (latents_name, clip_name))}
    lost = needed.difference(ledger.names(group["ordinal"]))
    _demand(not lost, f"group {group['ordinal']}: blobs {', '.join(sorted(lost))} are missing, but it is not collected")
