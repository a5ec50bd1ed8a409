"""Groups that are collected for a candidate set: read whole once they are scored, then deleted.

```
enqueue ──> sampled, scored like every group ──> done ──> collected(): read ──> drop_collected(): counted, deleted
```
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from common.exchange import retention
from common.exchange.api import CollectedGroup, State
from common.exchange.sampling import CONDITIONING, open_prompt
from common.exchange.scoring import open_candidate
from common.exchange.storage.ledger import Ledger
from common.messages import Conditioning, Purpose, Score


@dataclass(slots=True)
class CollectionQueue:
    """Every method is one transaction; the caller runs it inside a batch of the commit queue."""

    ledger: Ledger

    def finished(self) -> list[sqlite3.Row]:
        """The rows of all collected groups that were not dropped, oldest first."""
        return [group for group in self.ledger.in_state(State.DONE) if group["purpose"] == Purpose.COLLECT]

    def open(self, group: sqlite3.Row) -> Callable[[], CollectedGroup]:
        """Open the blobs of one entry of `finished`; the returned function reads them."""
        ordinal, prompt = group["ordinal"], open_prompt(self.ledger, group)
        rows = self.ledger.candidates(ordinal)
        conditioning = self.ledger.open(ordinal, CONDITIONING)
        candidates = [open_candidate(self.ledger, row) for row in rows]
        scores = tuple(
            Score(row["id"], row["reward_version"], json.loads(row["scores"]), purpose=Purpose.COLLECT) for row in rows
        )

        def read() -> CollectedGroup:
            embeds, image = conditioning.read()
            if embeds is None:
                raise RuntimeError(f"group {ordinal}: its conditioning has no prompt embeddings")
            found = tuple(read_one() for read_one in candidates)
            return CollectedGroup(ordinal, prompt(), Conditioning(embeds, image), found, scores)

        return read

    def drop(self, ordinal: int) -> None:
        """See `HubExchange.drop_collected`."""
        with self.ledger.transaction():
            self.ledger.keep_only(ordinal)
            retention.drop_collected(self.ledger, ordinal)
