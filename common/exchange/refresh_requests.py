"""Refreshes of the reference model that the guardrails request and the learner applies.

The ledger stores after which step each refresh was requested and after which step it was applied, so a resumed run
applies it between the same two steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from common.exchange.storage.ledger import Ledger


@dataclass(slots=True)
class RefreshRequests:
    """The requests in the ledger. Every method runs inside a batch of the commit queue."""

    ledger: Ledger

    def request(self, version: int) -> None:
        """See `HubExchange.ask_refresh`."""
        with self.ledger.transaction():
            row = self.ledger.first("SELECT step FROM versions WHERE version = ? AND rolled_back = 0", version)
            if row is not None:
                self._store({row["step"]: None} | self._load())

    def is_due(self, step: int) -> bool:
        """See `LearnerExchange.refresh_due`."""
        with self.ledger.transaction():
            before = self._load()
            after = {
                requested: step if applied is None and requested <= step else applied
                for requested, applied in before.items()
            }
            if after != before:
                self._store(after)
            return step in after.values()

    def roll_back(self, step: int) -> None:
        """Drop refreshes requested after `step`, and make those applied after it pending again.

        Unlike the other methods, it must be called inside a transaction.
        """
        before = self._load()
        after = {
            requested: None if applied is not None and applied > step else applied
            for requested, applied in before.items()
            if requested <= step
        }
        if after != before:
            self._store(after)

    def _load(self) -> dict[int, int | None]:
        """Maps the step after which a refresh was requested to the step after which it was applied (None: pending)."""
        stored = json.loads(self.ledger.meta("refreshes", "{}"))
        return {int(requested): applied for requested, applied in stored.items()}

    def _store(self, requests: dict[int, int | None]) -> None:
        self.ledger.set_meta("refreshes", json.dumps(requests, sort_keys=True))
