"""What the ledger forgets, so that its size is bounded however long a run is: all that ended, but for its sums.

| goes                         | when                                                    | stays in `archive`       |
|------------------------------|---------------------------------------------------------|--------------------------|
| ended training groups, with  | `exchange.keep_groups` later ones were admitted, and no | groups by state, uses,   |
| candidates, uses and waste   | kept checkpoint lies before the step that ended them    | waste by reason          |
| probes that were read        | at once                                                 | groups by state, waste   |
| versions                     | no checkpoint is near enough to sample with them again  | the highest id forgotten |
| marks of checkpoints         | they are not kept any more                              |                          |

So a resume from any kept checkpoint finds all that it takes back, and every ordinal is still in exactly one state: of
those that are gone the archive knows how many are in which.
"""

from __future__ import annotations

from typing import Any

from common.config import RunConfig
from common.exchange.api import State
from common.exchange.storage.ledger import Ledger
from common.messages import Purpose

USES, WASTE, FORGOTTEN = "uses", "waste", "version"  # kinds of rows, beside the purposes of groups
ADD = "ON CONFLICT (kind, name) DO UPDATE SET count = count + excluded.count"
SETTLED = """
SELECT ordinal FROM groups
WHERE purpose = ? AND ordinal < ? AND (state IN (?, ?) OR (state IN (?, ?) AND closed <= ?))
"""
READ = "SELECT ordinal FROM groups WHERE purpose = ? AND (state = ? OR (state = ? AND version != ?))"


def prune(ledger: Ledger, config: RunConfig, final: int) -> None:
    """Forget what ended by step `final`, behind which no resume goes, and is old enough."""
    oldest = ledger.admitted(Purpose.TRAIN) - config.exchange.keep_groups
    ended = (State.TIED, State.FAILED, State.TRAINED, State.EXPIRED)
    _forget(ledger, SETTLED, Purpose.TRAIN, oldest, *ended, final)
    _forget_versions(ledger, config, final)
    ledger.run("DELETE FROM marks WHERE step < ?", final)


def forget_probes(ledger: Ledger, base: int) -> None:
    """Forget the probes that failed or are done, but for those of version `base`. Their blobs are gone already."""
    _forget(ledger, READ, Purpose.PROBE, State.FAILED, State.DONE, base)


def forgotten_version(ledger: Ledger) -> int:
    """The highest version that was forgotten; -1 when none was."""
    return count(ledger, FORGOTTEN, -1)


def count(ledger: Ledger, kind: str, default: int = 0) -> int:
    """What the archive says of a kind that has one row."""
    row = ledger.first("SELECT count FROM archive WHERE kind = ?", kind)
    return default if row is None else int(row["count"])


def _forget(ledger: Ledger, which: str, *values: Any) -> None:
    """Add up the groups that the query `which` names, and delete them with all that is theirs."""
    sums = (
        ("SELECT purpose, state, COUNT(*) FROM groups", "GROUP BY purpose, state"),
        (f"SELECT '{USES}', '', SUM(uses) FROM groups", "HAVING SUM(uses) > 0"),
        (f"SELECT '{WASTE}', reason, COUNT(*) FROM waste", "GROUP BY reason"),
    )
    for select, grouped in sums:
        ledger.run(f"INSERT INTO archive {select} WHERE ordinal IN ({which}) {grouped} {ADD}", *values)
    for table in ("waste", "candidates", "uses", "groups"):
        ledger.run(f"DELETE FROM {table} WHERE ordinal IN ({which})", *values)


def _forget_versions(ledger: Ledger, config: RunConfig, final: int) -> None:
    """Forget versions that no sampler may use again wherever training goes on from, and that no reading is about.

    Those of lost lineages stay, for `rolled_back`. The current one is never that old: admission stops before.
    """
    stale = final // config.learner.steps_per_push - config.exchange.max_lag - 1
    highest = ledger.one("SELECT MAX(version) FROM versions WHERE lost = 0 AND pushes < ?", stale)[0]
    if highest is not None:
        sql = "INSERT INTO archive VALUES (?, '', ?) ON CONFLICT (kind, name) DO UPDATE SET count = excluded.count"
        ledger.run(sql, FORGOTTEN, max(highest, forgotten_version(ledger)))
        ledger.run("DELETE FROM versions WHERE lost = 0 AND pushes < ?", stale)
