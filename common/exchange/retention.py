"""Pruning of the ledger, which bounds its size in long runs: finished rows are deleted and only counts are kept.

| deleted rows                          | when                                             | counts kept in `archive` |
|---------------------------------------|--------------------------------------------------|--------------------------|
| finished training groups, with their  | `exchange.keep_groups` newer groups exist, all   | groups by state, uses,   |
| candidates, batch entries, waste      | kept checkpoints are at or after the step that   | wasted candidates by     |
|                                       | ended the group, and it does not wait to be      | reason                   |
|                                       | collected                                        |                          |
| retired probes                        | at once                                          | the same                 |
| versions                              | more than max_lag pushes older than every kept   | (the highest deleted id) |
|                                       | checkpoint, so no sampler may use them           |                          |
| checkpoints                           | older than the oldest kept one                   |                          |

A resume from any kept checkpoint therefore finds all rows that it has to roll back. Every ordinal still counts in
exactly one state, because the archive holds the number of deleted groups per state.
"""

from __future__ import annotations

from typing import Any

from common.config import RunConfig
from common.exchange.api import State
from common.exchange.storage.ledger import Ledger
from common.messages import Purpose

# Values of `archive.kind`, besides the purposes of groups.
TIMES_TRAINED, WASTED, VERSION = "times_trained", "wasted_candidates", "version"
ADD = "ON CONFLICT (kind, name) DO UPDATE SET count = count + excluded.count"
FINISHED = """
SELECT ordinal FROM groups
WHERE purpose = ? AND ordinal < ? AND NOT waits AND (state IN (?, ?) OR (state IN (?, ?) AND ended_at_step <= ?))
"""
COLLECTED = "SELECT ordinal FROM groups WHERE ordinal = ?"
RETIRED_PROBES = "SELECT ordinal FROM groups WHERE purpose = ? AND (state = ? OR (state = ? AND version != ?))"


def prune(ledger: Ledger, config: RunConfig, oldest_step: int) -> None:
    """Delete old rows that ended at or before step `oldest_step`, the earliest step that a run can resume from."""
    oldest = ledger.admitted(Purpose.TRAIN) - config.exchange.keep_groups
    ended = (State.TIED, State.FAILED, State.TRAINED, State.EXPIRED)
    _archive_and_delete(ledger, FINISHED, Purpose.TRAIN, oldest, *ended, oldest_step)
    _prune_versions(ledger, config, oldest_step)
    ledger.run("DELETE FROM checkpoints WHERE step < ?", oldest_step)


def prune_probes(ledger: Ledger, base: int) -> None:
    """Delete failed probes, and done probes of versions other than `base`. Their blobs are already deleted."""
    _archive_and_delete(ledger, RETIRED_PROBES, Purpose.PROBE, State.FAILED, State.DONE, base)


def drop_collected(ledger: Ledger, ordinal: int) -> None:
    """Delete a collected group. Its blobs are already deleted."""
    _archive_and_delete(ledger, COLLECTED, ordinal)


def highest_pruned_version(ledger: Ledger) -> int:
    """The highest deleted version id; -1 if there is none."""
    return count(ledger, VERSION, -1)


def count(ledger: Ledger, kind: str, default: int = 0) -> int:
    """The archived count of a kind that has at most one row; `default` if it has none."""
    row = ledger.first("SELECT count FROM archive WHERE kind = ?", kind)
    return default if row is None else int(row["count"])


def _archive_and_delete(ledger: Ledger, which: str, *values: Any) -> None:
    """Archive the counts of the groups that the query `which` selects, then delete them and their rows."""
    sums = (
        ("SELECT purpose, state, COUNT(*) FROM groups", "GROUP BY purpose, state"),
        (f"SELECT '{TIMES_TRAINED}', '', SUM(times_trained) FROM groups", "HAVING SUM(times_trained) > 0"),
        (f"SELECT '{WASTED}', reason, COUNT(*) FROM wasted_candidates", "GROUP BY reason"),
    )
    for select, grouped in sums:
        ledger.run(f"INSERT INTO archive {select} WHERE ordinal IN ({which}) {grouped} {ADD}", *values)
    for table in ("wasted_candidates", "unsampled", "candidates", "batch_entries", "groups"):
        ledger.run(f"DELETE FROM {table} WHERE ordinal IN ({which})", *values)


def _prune_versions(ledger: Ledger, config: RunConfig, oldest_step: int) -> None:
    """Delete versions that are too old to sample with, even after a resume from the oldest kept checkpoint.

    Versions that were rolled back stay, because `rolled_back` needs them. The current version is never that old.
    """
    stale = oldest_step // config.learner.steps_per_push - config.exchange.max_lag - 1
    highest = ledger.one("SELECT MAX(version) FROM versions WHERE rolled_back = 0 AND pushes < ?", stale)[0]
    if highest is not None:
        sql = "INSERT INTO archive VALUES (?, '', ?) ON CONFLICT (kind, name) DO UPDATE SET count = excluded.count"
        ledger.run(sql, VERSION, max(highest, highest_pruned_version(ledger)))
        ledger.run("DELETE FROM versions WHERE rolled_back = 0 AND pushes < ?", stale)
