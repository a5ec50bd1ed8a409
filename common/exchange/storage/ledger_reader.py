"""Read-only queries on a ledger, used by the exchange that owns it and by tools that inspect a run."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from common.errors import ConfigError, NotFoundError, StorageError
from common.errors.disk import writing
from common.exchange import rules
from common.exchange.api import State
from common.messages import Purpose, Selection

LEDGER_VERSION = 6
LEDGER = "ledger.sqlite"


class NotBegun(NotFoundError):
    """The folder has no ledger yet."""


class LedgerReader:
    """Queries on the database at `path`. Not thread-safe; the owner serializes access.

    All methods raise `StorageError` if the database cannot be read.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._db = path, database
        self._db.row_factory = sqlite3.Row

    def all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query; `values` fill its placeholders."""
        with writing(self.path):
            return self._db.execute(sql, values).fetchall()

    def first(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        with writing(self.path):
            return self._db.execute(sql, values).fetchone()

    def one(self, sql: str, *values: Any) -> sqlite3.Row:
        """The first row of a query. Raises `LookupError` if there is none."""
        row = self.first(sql, *values)
        if row is None:
            raise LookupError(f"{self.path}: no row for {sql} {values}")
        return row

    def meta(self, key: str, default: Any) -> Any:
        """The stored value of `key`, or `default`."""
        row = self.first("SELECT value FROM meta WHERE key = ?", key)
        return default if row is None else row["value"]

    # Groups.

    def group(self, ordinal: int) -> sqlite3.Row:
        """The row of a group. Raises `LookupError` if it does not exist or was pruned."""
        return self.one("SELECT * FROM groups WHERE ordinal = ?", ordinal)

    def candidates(self, ordinal: int) -> list[sqlite3.Row]:
        """The stored candidates of one group, by index."""
        return self.all("SELECT * FROM candidates WHERE ordinal = ? ORDER BY candidate_index", ordinal)

    def unsampled(self, ordinal: int) -> list[sqlite3.Row]:
        """The missing candidates of one opened group, by index, with their sampling leases."""
        return self.all("SELECT * FROM unsampled WHERE ordinal = ? ORDER BY candidate_index", ordinal)

    def admitted(self, purpose: Purpose) -> int:
        """Number of groups ever admitted with this purpose. For training it is also the next ordinal."""
        return int(self.meta(f"admitted:{purpose}", 0))

    def in_state(self, *states: State) -> list[sqlite3.Row]:
        """All groups in one of `states`, by ordinal."""
        slots = ", ".join("?" * len(states))
        return self.all(f"SELECT * FROM groups WHERE state IN ({slots}) ORDER BY ordinal", *states)

    def counts(self, purpose: Purpose) -> dict[State, int]:
        """Number of groups per state, including pruned groups. Every state has an entry."""
        found = Counter[str]()
        for row in self.all("SELECT state, COUNT(*) AS n FROM groups WHERE purpose = ? GROUP BY state UNION ALL "
                            "SELECT name, count FROM archive WHERE kind = ?", purpose, purpose):  # fmt: skip
            found[row["state"]] += int(row["n"])
        return {state: found[state] for state in State}

    def load(self, max_times_trained: int) -> rules.Load:
        """Counts of training groups for admission; each pair may be trained on `max_times_trained` times."""
        counts = self.counts(Purpose.TRAIN)
        live = counts[State.READY] + counts[State.TRAINING]
        used = self.one("SELECT COALESCE(SUM(times_trained), 0) FROM groups WHERE state IN (?, ?)", *rules.LIVE)[0]
        spent = self.one("SELECT COALESCE(SUM(times_trained), 0) FROM (SELECT times_trained FROM groups "
                         "WHERE purpose = ? UNION ALL SELECT count FROM archive WHERE kind = 'times_trained')",
                         Purpose.TRAIN)[0]  # fmt: skip
        running = sum(counts[state] for state in rules.RUNNING)
        return rules.Load(running, live, max_times_trained * live - used, spent)

    def committed_step(self) -> int:
        """The last committed step that was not rolled back; 0 before the first."""
        row = self.first("SELECT step FROM batch_entries WHERE committed = 1 ORDER BY step DESC LIMIT 1")
        # Entries up to the oldest step that a run can resume from may be pruned.
        return max(self.meta("oldest_resumable_step", 0), 0 if row is None else int(row["step"]))

    def current_version(self) -> int:
        """The newest announced version that was not rolled back; 0, the base model, if there is none."""
        return int(self.one("SELECT COALESCE(MAX(version), 0) FROM versions WHERE rolled_back = 0")[0])

    def is_rolled_back(self, version: int) -> bool:
        """Whether a rollback discarded `version`."""
        row = self.first("SELECT rolled_back FROM versions WHERE version = ?", version)
        return row is not None and bool(row["rolled_back"])

    def wasted(self) -> dict[str, int]:
        """Number of wasted candidates by reason, including pruned ones."""
        sql = (
            "SELECT reason, SUM(n) AS n FROM (SELECT reason, COUNT(*) AS n FROM wasted_candidates GROUP BY reason "
            "UNION ALL SELECT name, count FROM archive WHERE kind = 'wasted_candidates') "
            "GROUP BY reason ORDER BY reason"
        )
        return {row["reason"]: int(row["n"]) for row in self.all(sql)}

    def checkpoints(self) -> list[int]:
        """Steps of the recorded checkpoints, ascending."""
        return [int(row["step"]) for row in self.all("SELECT step FROM checkpoints ORDER BY step")]

    def bytes_on_disk(self) -> int:
        """Total size of all blobs in bytes."""
        return int(self.one("SELECT COALESCE(SUM(size), 0) FROM blobs")[0])


def stored_selection(group: sqlite3.Row) -> tuple[Selection, tuple[float, ...]]:
    """The selection of a group, and the reward R~ in [0, 1] of each kept candidate."""
    stored = json.loads(group["selection"])
    selection = Selection(tuple(stored["candidates"]), tuple(stored["weights"]))
    return selection, tuple(stored["rewards"])


@contextmanager
def open_readonly(folder: Path) -> Iterator[LedgerReader]:
    """Open a run's ledger read-only, in one consistent snapshot. The run may continue meanwhile.

    Raises `NotBegun` if the run has no ledger yet, and `ConfigError` if it cannot be read.
    """
    path = folder / LEDGER
    if not path.is_file():
        raise NotBegun(f"{path}: missing; the run has not begun")
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as database:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if not found:
                raise NotBegun(f"{path}: empty; the run has not begun")
            if found != LEDGER_VERSION:
                raise ConfigError(f"{path}: ledger of schema {found}, this program reads {LEDGER_VERSION}")
            database.execute("BEGIN")
            yield LedgerReader(path, database)
    except (sqlite3.Error, StorageError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
