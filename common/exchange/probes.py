"""The guardrails' side of the exchange: rescore and retire probes, request refreshes of the reference.

The ledger stores after which step each refresh was requested and after which step it was applied, so a resumed run
applies it between the same two steps.
"""

from __future__ import annotations

import json
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
            retention.forget_probes(self.ledger, BASE)

    def _probes(self, state: State, version: int | None = None) -> list:
        found = self.ledger.all(
            "SELECT * FROM groups WHERE purpose = ? AND state = ? ORDER BY ordinal", Purpose.PROBE, state
        )
        return [group for group in found if version is None or group["version"] == version]

    def rolled_back(self, version: int) -> bool:
        """See `HubExchange.rolled_back`."""
        with self.ledger.transaction():
            row = self.ledger.first("SELECT rolled_back FROM versions WHERE version = ?", version)
            return row is not None and bool(row["rolled_back"])

    def ask_refresh(self, version: int) -> None:
        """See `HubExchange.ask_refresh`."""
        with self.ledger.transaction():
            row = self.ledger.first("SELECT step FROM versions WHERE version = ? AND rolled_back = 0", version)
            if row is not None:
                _store(self.ledger, {row["step"]: None} | _asked(self.ledger))

    def refresh_due(self, step: int) -> bool:
        """See `LearnerExchange.refresh_due`."""
        with self.ledger.transaction():
            before = _asked(self.ledger)
            after = {at: step if taken is None and at <= step else taken for at, taken in before.items()}
            if after != before:
                _store(self.ledger, after)
            return step in after.values()


def roll_back(ledger: Ledger, step: int) -> None:
    """Roll back to `step`: drop refreshes requested after it, and make those applied after it pending again."""
    before = _asked(ledger)
    after = {at: None if taken is not None and taken > step else taken for at, taken in before.items() if at <= step}
    if after != before:
        _store(ledger, after)


def _asked(ledger: Ledger) -> dict[int, int | None]:
    """Maps the step at which a refresh was requested to the step at which it was applied (None: pending)."""
    return {int(at): taken for at, taken in json.loads(ledger.meta("refreshes", "{}")).items()}


def _store(ledger: Ledger, asked: dict[int, int | None]) -> None:
    ledger.set_meta("refreshes", json.dumps(asked, sort_keys=True))
