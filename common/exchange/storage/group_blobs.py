"""The blobs of a group: their names, and which of them a scored training group still needs.

| blob | kept |
|---|---|
| image, conditioning, latents of the selected candidates | until all kept checkpoints are at or after the group's end |
| their clips, for `douga watch` | as long, but of the `SHOWN` newest selected groups only |
| all blobs of a group that waits to be collected | until it is dropped |
"""

from __future__ import annotations

import json
import sqlite3

from common.exchange.api import State
from common.exchange.storage.ledger import Ledger
from common.exchange.storage.ledger_reader import LedgerReader, stored_selection

IMAGE, CONDITIONING = "image", "conditioning"
SHOWN = 16  # newest selected groups whose clips are kept with their latents


def latents_name(index: int) -> str:
    """Name of the blob with the latents of candidate `index`."""
    return f"latents/{index}"


def clip_name(index: int) -> str:
    """Name of the blob with the clip of candidate `index`."""
    return f"clip/{index}"


def settle(ledger: Ledger, ordinal: int) -> None:
    """Delete the blobs of a scored training group that nothing needs any more. No effect if the group was pruned."""
    group = ledger.first("SELECT * FROM groups WHERE ordinal = ?", ordinal)
    if group is not None and not group["waits"]:
        ledger.keep_only(ordinal, _needed(ledger, group))


def release_waiting(ledger: Ledger, *ordinals: int) -> None:
    """End the wait of these groups, or of all without arguments, and settle them."""
    waiting = [int(row["ordinal"]) for row in ledger.all("SELECT ordinal FROM groups WHERE waits ORDER BY ordinal")]
    for ordinal in waiting:
        if not ordinals or ordinal in ordinals:
            ledger.update(ordinal, waits=False)
            settle(ledger, ordinal)


def _needed(ledger: LedgerReader, group: sqlite3.Row) -> list[str]:
    if not may_train(ledger, group):
        return []
    kept = stored_selection(group)[0].candidates
    clips = map(clip_name, kept) if group["ordinal"] in _shown(ledger) else ()
    return [IMAGE, CONDITIONING, *map(latents_name, kept), *clips]


def may_train(ledger: LedgerReader, group: sqlite3.Row) -> bool:
    """Whether a training group is selected and a step, perhaps after a rollback, may still use it."""
    state = State(group["state"])
    if state in (State.TRAINED, State.EXPIRED):
        return group["ended_at_step"] > ledger.meta("oldest_resumable_step", 0)
    return state in (State.READY, State.TRAINING)


def show(ledger: Ledger, *newest: int, most: int = SHOWN) -> None:
    """Add `newest`, the groups just selected, and delete the clips of all but the `most` newest selected groups."""
    shown = [*_shown(ledger), *newest]
    cut = max(0, len(shown) - most)
    ledger.set_meta("shown", json.dumps(shown[cut:]))
    for ordinal in shown[:cut]:
        settle(ledger, ordinal)


def _shown(ledger: LedgerReader) -> list[int]:
    return json.loads(ledger.meta("shown", "[]"))
