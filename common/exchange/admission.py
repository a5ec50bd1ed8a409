"""Admission control: whether a sampler may open one more training group now, and why not."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from common.config import RunConfig
from common.exchange import rules
from common.exchange.api import State
from common.exchange.storage.ledger_reader import LedgerReader
from common.messages import Purpose


class RefusalReason(StrEnum):
    """Why no training group can be sampled."""

    COLLECTING = "collecting"
    ROLLED_BACK = "rolled back"
    STALE = "stale"
    AWAITS_WEIGHTS = "awaits weights"
    PIPELINE_FULL = "pipeline full"
    ENOUGH_PAIRS = "enough pairs"
    DISK_FULL = "disk full"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why admission control refused a lease. `message` explains it and names the config key to change."""

    reason: RefusalReason
    message: str


def admission_refusal(ledger: LedgerReader, config: RunConfig, version: int) -> Refusal | None:
    """Why a sampler with `version` cannot be given a training group now; None if it can."""
    if config.collect.prompts:
        return Refusal(RefusalReason.COLLECTING, f"collect.prompts = {config.collect.prompts}: the run does not train")
    pushes = ledger.meta("pushes", 0)
    row = ledger.first("SELECT pushes, rolled_back FROM versions WHERE version = ?", version)
    then = pushes if config.offline else 0 if row is None else row["pushes"]
    return _version_refusal(config, version, row, pushes) or _load_refusal(ledger, config, pushes, then)


def _version_refusal(config: RunConfig, version: int, row: sqlite3.Row | None, pushes: int) -> Refusal | None:
    max_lag = config.exchange.max_lag
    if row is not None and row["rolled_back"]:
        message = f"version {version} was rolled back: load the newest version first"
        return Refusal(RefusalReason.ROLLED_BACK, message)
    lag = rules.lag(pushes, 0 if row is None else row["pushes"])
    if not config.offline and rules.is_stale(lag, max_lag):
        message = f"version {version} is more than exchange.max_lag = {max_lag} pushes old"
        return Refusal(RefusalReason.STALE, message)
    return None


def _load_refusal(ledger: LedgerReader, config: RunConfig, pushes: int, then: int) -> Refusal | None:
    """Why the groups that exist leave no room for another; `then` is the push count of the sampler's version."""
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
    if rules.capacity(bounds, load, min(then, pushes)) < 1:
        message = f"exchange.max_lag = {exchange.max_lag}: pairs of older weights would be too old at their turn"
        return Refusal(RefusalReason.AWAITS_WEIGHTS, message)
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
