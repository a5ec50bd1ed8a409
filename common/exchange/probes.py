"""Probes and evaluations that are measured again, or not at all: rescoring and retiring."""

from __future__ import annotations

from dataclasses import dataclass

from common.exchange import retention
from common.exchange.api import State
from common.exchange.storage.ledger import Ledger
from common.messages import Purpose

BASE = 0  # the version of the base model
RETIRED = "retired before it was sampled"


@dataclass(slots=True)
class ProbeQueue:
    """Every method is one transaction; the caller runs it inside a batch of the commit queue."""

    ledger: Ledger

    def rescore_probes(self, version: int) -> None:
        """See `HubExchange.rescore_probes`."""
        with self.ledger.transaction():
            for group in self._probes(State.DONE, version):
                self.ledger.run(
                    "UPDATE candidates SET scores = NULL, reward_version = NULL, failures = 0 WHERE ordinal = ?",
                    group["ordinal"],
                )
                self.ledger.move(group["ordinal"], State.SAMPLED)

    def retire_probes(self) -> None:
        """See `HubExchange.retire_probes`."""
        with self.ledger.transaction():
            for group in self._probes(State.PENDING):
                if group["required_version"] != BASE:
                    self.ledger.keep_only(group["ordinal"])
                    self.ledger.move(group["ordinal"], State.FAILED, reason=RETIRED)
            for group in self._probes(State.DONE):
                if group["version"] != BASE:
                    self.ledger.keep_only(group["ordinal"])
            retention.prune_probes(self.ledger, BASE)

    def retire_rolled_back(self) -> None:
        """Fail the unsampled probes and evaluations of versions that a rollback discarded.

        Their weights may be deleted before a sampler loads them, and samplers would wait for them forever. Unlike the
        other methods, it must be called inside a transaction.
        """
        for group in self.ledger.all(
            "SELECT * FROM groups WHERE purpose != ? AND state IN (?, ?)"
            " AND required_version IN (SELECT version FROM versions WHERE rolled_back = 1)",
            *(Purpose.TRAIN, State.PENDING, State.SAMPLING),
        ):
            self.ledger.keep_only(group["ordinal"])
            self.ledger.move(group["ordinal"], State.FAILED, reason=RETIRED, leased_by=None, lease_expires=None)

    def _probes(self, state: State, version: int | None = None) -> list:
        found = self.ledger.all(
            "SELECT * FROM groups WHERE purpose = ? AND state = ? ORDER BY ordinal", Purpose.PROBE, state
        )
        return [group for group in found if version is None or group["version"] == version]
