"""Groups that go to a candidate set: read whole once they are scored, then dropped.

```
a collection's   enqueue ──> sampled, scored ──> done ────────────────> collected(): read ──> drop_collected(): deleted
a training run's             sampled, scored ──> ready or tied, waits ─> collected(): read ──> drop_collected(): settled
```

A training group that waits goes on as usual: only its blobs stay, all of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from common.exchange import retention
from common.exchange.api import CollectedGroup, State
from common.exchange.sampling import open_prompt
from common.exchange.scoring import open_candidate
from common.exchange.storage.group_blobs import CONDITIONING, release_waiting
from common.exchange.storage.ledger import Ledger
from common.exchange.storage.ledger_reader import stored_selection
from common.messages import Conditioning, Purpose, Score

COLLECTED = "SELECT * FROM groups WHERE (purpose = ? AND state = ?) OR waits ORDER BY ordinal"


@dataclass(slots=True)
class CollectionQueue:
    """Every method is one transaction; the caller runs it inside a batch of the commit queue."""

    ledger: Ledger

    def finished(self) -> list[sqlite3.Row]:
        """The rows of all groups to collect that were not dropped, oldest first."""
        return self.ledger.all(COLLECTED, Purpose.COLLECT, State.DONE)

    def open(self, group: sqlite3.Row) -> Callable[[], CollectedGroup]:
        """Open the blobs of one entry of `finished`; the returned function reads them."""
        ordinal, prompt = group["ordinal"], open_prompt(self.ledger, group)
        rows = self.ledger.candidates(ordinal)
        conditioning = self.ledger.open(ordinal, CONDITIONING)
        candidates = [open_candidate(self.ledger, row) for row in rows]
        purpose = Purpose(group["purpose"])
        scores = tuple(
            Score(row["id"], row["reward_version"], json.loads(row["scores"]), purpose=purpose) for row in rows
        )
        selection = None if group["selection"] is None else stored_selection(group)[0]

        def read() -> CollectedGroup:
            embeds, image = conditioning.read()
            if embeds is None:
                raise RuntimeError(f"group {ordinal}: its conditioning has no prompt embeddings")
            found = tuple(read_one() for read_one in candidates)
            encoded = Conditioning(embeds, image)
            return CollectedGroup(ordinal, prompt(), encoded, found, scores, selection, group["weights"])

        return read

    def drop(self, ordinal: int) -> None:
        """See `HubExchange.drop_collected`."""
        with self.ledger.transaction():
            group = self.ledger.first("SELECT purpose FROM groups WHERE ordinal = ?", ordinal)
            if group is not None and group["purpose"] == Purpose.TRAIN:
                release_waiting(self.ledger, ordinal)
                return
            self.ledger.keep_only(ordinal)
            retention.drop_collected(self.ledger, ordinal)

    def stop_keeping(self) -> None:
        """See `HubExchange.stop_keeping`."""
        with self.ledger.transaction():
            release_waiting(self.ledger)
