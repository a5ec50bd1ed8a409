"""Answers in SQLite (WAL). Each is on disk before its annotator sees the next clip, and none is ever deleted.

| table    | one row per                        | notes                                                           |
|----------|------------------------------------|-----------------------------------------------------------------|
| answers  | answer                             | `live` 0: undone, or replaced by the same annotator's later one |
| showing  | annotator and kind                 | the item on their screen, so that not too many get the same one |

A crash at any point loses no acknowledged answer. Several threads and processes may share one file.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from common.errors import ConfigError
from common.errors.disk import is_damage, writing

STORE = "annotations.sqlite"
STORE_VERSION = 1
BUSY_SECONDS = 30.0

TABLES = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, annotator TEXT NOT NULL, kind TEXT NOT NULL, item TEXT NOT NULL, value TEXT NOT NULL,
    time REAL NOT NULL, live INTEGER NOT NULL DEFAULT 1);
CREATE UNIQUE INDEX live_answers ON answers (kind, item, annotator) WHERE live;
CREATE INDEX answers_by_annotator ON answers (annotator, kind, id);
CREATE TABLE showing (
    annotator TEXT NOT NULL, kind TEXT NOT NULL, item TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (annotator, kind));
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One annotator's answer about one item."""

    annotator: str
    item: str  # key of a clip or a pair
    value: dict[str, Any]


class Store:
    """The answers of one run or folder. Raises `ConfigError` if the file is not such a store, `StorageError` if the
    disk fails."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock, self._lock = path, clock, RLock()
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._open()
        except sqlite3.Error as error:
            problem = f"damaged, or not an annotation store ({error})" if is_damage(error) else str(error)
            raise ConfigError(f"{path}: {problem}") from None

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                for statement in TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {STORE_VERSION}")
            elif found != STORE_VERSION:
                raise ConfigError(f"{self.path}: store of schema {found}; this program reads {STORE_VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Runs the block atomically and isolated from other writers. Can be nested."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            with writing(self.path):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise

    def answer(self, annotator: str, kind: str, item: str, value: dict[str, Any]) -> None:
        """Stores an answer. The annotator's earlier answer about the item no longer counts."""
        with self.transaction():
            self._supersede(annotator, kind, item)
            self._db.execute(
                "INSERT INTO answers (annotator, kind, item, value, time) VALUES (?, ?, ?, ?, ?)",
                (annotator, kind, item, json.dumps(value, sort_keys=True), self._clock()),
            )
            self._db.execute("DELETE FROM showing WHERE annotator = ? AND kind = ?", (annotator, kind))

    def _supersede(self, annotator: str, kind: str, item: str) -> None:
        sql = "UPDATE answers SET live = 0 WHERE annotator = ? AND kind = ? AND item = ? AND live"
        self._db.execute(sql, (annotator, kind, item))

    def undo(self, annotator: str, kind: str) -> str | None:
        """Takes back the last answer that counts. Returns its item, or None if there is none."""
        with self.transaction():
            sql = "SELECT item FROM answers WHERE annotator = ? AND kind = ? AND live ORDER BY id DESC LIMIT 1"
            row = self._db.execute(sql, (annotator, kind)).fetchone()
            if row is not None:
                self._supersede(annotator, kind, row[0])
            return None if row is None else row[0]

    def latest_answer(self, annotator: str, kind: str, item: str) -> dict[str, Any] | None:
        """Returns an annotator's newest answer about an item, even if it was undone."""
        sql = "SELECT value FROM answers WHERE annotator = ? AND kind = ? AND item = ? ORDER BY id DESC LIMIT 1"
        with self._lock:
            row = self._db.execute(sql, (annotator, kind, item)).fetchone()
        return None if row is None else json.loads(row[0])

    def answers(self, kind: str) -> list[Answer]:
        """Returns all answers of a kind that count, oldest first."""
        sql = "SELECT annotator, item, value FROM answers WHERE kind = ? AND live ORDER BY id"
        with self._lock:
            rows = self._db.execute(sql, (kind,)).fetchall()
        return [Answer(annotator, item, json.loads(value)) for annotator, item, value in rows]

    def kinds(self) -> list[str]:
        """Returns the kinds that have answers."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT DISTINCT kind FROM answers WHERE live ORDER BY kind")]

    def show(self, annotator: str, kind: str, item: str, seconds: float) -> None:
        """Records that an item is on the annotator's screen for the next `seconds`."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO showing VALUES (?, ?, ?, ?)", (annotator, kind, item, self._clock() + seconds)
            )

    def shown(self, kind: str) -> dict[str, str]:
        """Returns annotator -> the item on their screen."""
        sql = "SELECT annotator, item FROM showing WHERE kind = ? AND until > ?"
        with self._lock:
            return dict(self._db.execute(sql, (kind, self._clock())).fetchall())

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()
