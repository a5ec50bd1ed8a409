"""The ledger: the state of all prompt groups in SQLite (WAL), and the blobs that they still need.

Operations are atomic, even if the process is killed. Operations that are queued at the same time share one commit
(`group_commit.py`). Blobs are written before the commit that references them and deleted after the commit that drops
the reference. So a crash or power cut leaves at most unreferenced files, which are deleted when the ledger is next
opened. If a disk operation fails, the ledger operation is rolled back and raises `StorageError`.

| table             | one row per                     | notes                                                     |
|-------------------|---------------------------------|-----------------------------------------------------------|
| groups            | prompt group                    | `state`: `api.State`; `selection`: JSON of the kept       |
|                   |                                 | candidates; `position`: place among the prompts of one    |
|                   |                                 | `enqueue`, or the ordinal of a training group;            |
|                   |                                 | `weights`: digest of its policy; `waits`: 1 if all its    |
|                   |                                 | blobs are kept until it is collected                      |
| unsampled         | missing candidate of a group    | its sampling lease                                        |
|                   | that was opened                 |                                                           |
| candidates        | stored candidate                | its scoring lease and its raw scores                      |
| group_blobs       | (group, name) -> blob           | image, conditioning, latents/i, clip/i                    |
| blobs             | distinct content                | its size in bytes, its file                               |
| batch_entries     | (optimizer step, slot) -> group | kept after a rollback, so that a step repeats its batch   |
| versions          | announced weights               | `rolled_back`: discarded by a rollback                    |
| checkpoints       | checkpoint of the learner       | its step                                                  |
| wasted_candidates | wasted candidate                | with the reason                                           |
| meta              | counter or small value          | admitted ordinals, pushes, identity                       |
| archive           | kind and name of pruned rows    | their count (`common/exchange/retention.py`)              |
"""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import ConfigError, CorruptDataError, StorageError
from common.errors.disk import describe_disk_error, is_damage, writing
from common.exchange import rules
from common.exchange.api import State, WasteReason, Work
from common.exchange.storage import snapshots
from common.exchange.storage.blobs import BlobHandle, BlobStore, StagedBlob
from common.exchange.storage.ledger_reader import LEDGER, LEDGER_VERSION, LedgerReader
from common.messages import Purpose, SerializedTensor

FIRST_EVALUATION = 1 << 40  # ledger ordinals of probe and eval groups start here; train ordinals are 0, 1, 2, ...

TABLES = """
CREATE TABLE groups (
    ordinal INTEGER PRIMARY KEY, purpose TEXT NOT NULL, state TEXT NOT NULL, prompt BLOB NOT NULL,
    position INTEGER NOT NULL, required_version INTEGER, version INTEGER, pushes INTEGER,
    leased_by TEXT, lease_expires REAL, attempt INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', selection TEXT, priority REAL, times_trained INTEGER NOT NULL DEFAULT 0,
    step INTEGER, ended_at_step INTEGER, weights TEXT NOT NULL DEFAULT '', waits INTEGER NOT NULL DEFAULT 0);
CREATE INDEX groups_by_state ON groups (state, ordinal);
CREATE INDEX groups_by_purpose ON groups (purpose, state, times_trained);
CREATE INDEX groups_that_wait ON groups (ordinal) WHERE waits;
CREATE INDEX groups_by_worker ON groups (leased_by) WHERE leased_by IS NOT NULL;
CREATE TABLE unsampled (
    ordinal INTEGER NOT NULL REFERENCES groups, candidate_index INTEGER NOT NULL, attempt INTEGER NOT NULL DEFAULT 0,
    leased_by TEXT, lease_expires REAL, failures INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (ordinal, candidate_index));
CREATE INDEX unsampled_by_worker ON unsampled (leased_by) WHERE leased_by IS NOT NULL;
CREATE INDEX unsampled_by_lease ON unsampled (lease_expires) WHERE lease_expires IS NOT NULL;
CREATE TABLE candidates (
    id TEXT PRIMARY KEY, ordinal INTEGER NOT NULL REFERENCES groups, candidate_index INTEGER NOT NULL,
    seed INTEGER NOT NULL, version INTEGER NOT NULL, fps INTEGER NOT NULL, height INTEGER NOT NULL,
    width INTEGER NOT NULL, leased_by TEXT, lease_expires REAL, failures INTEGER NOT NULL DEFAULT 0,
    reward_version TEXT, scores TEXT, UNIQUE (ordinal, candidate_index));
CREATE INDEX candidates_by_worker ON candidates (leased_by) WHERE leased_by IS NOT NULL;
CREATE INDEX candidates_by_lease ON candidates (lease_expires) WHERE lease_expires IS NOT NULL;
CREATE TABLE group_blobs (
    ordinal INTEGER NOT NULL REFERENCES groups, name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (ordinal, name));
CREATE INDEX group_blobs_by_digest ON group_blobs (digest);
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, file TEXT NOT NULL);
CREATE TABLE batch_entries (
    step INTEGER NOT NULL, slot INTEGER NOT NULL, ordinal INTEGER NOT NULL REFERENCES groups,
    committed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (step, slot));
CREATE INDEX batch_entries_by_group ON batch_entries (ordinal);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, step INTEGER NOT NULL, pushes INTEGER NOT NULL,
    rolled_back INTEGER NOT NULL DEFAULT 0, digest TEXT NOT NULL DEFAULT '');
CREATE TABLE checkpoints (step INTEGER PRIMARY KEY);
CREATE TABLE wasted_candidates (
    ordinal INTEGER NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (ordinal, id, reason));
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE archive (kind TEXT, name TEXT, count INTEGER NOT NULL, PRIMARY KEY (kind, name));
"""
UNSAMPLED = (State.PENDING, State.SAMPLING)  # states of groups that may miss candidates
# New state of a group -> kinds of work that may have become available.
NEWS: dict[State, tuple[Work, ...]] = {
    State.PENDING: (Work.SAMPLING, Work.TRAINING),
    State.SAMPLING: (Work.SAMPLING,),  # opened: its other candidates
    State.SAMPLED: (Work.SCORING,),
    State.READY: (Work.TRAINING, Work.SAMPLING),
    State.TRAINED: (Work.SAMPLING,),
    State.EXPIRED: (Work.SAMPLING,),
    State.TIED: (Work.SAMPLING, Work.TRAINING),
    State.FAILED: (Work.SAMPLING, Work.TRAINING),
}
LARGEST_LOG = 1 << 24  # bytes; SQLite truncates the write-ahead log to this size after a checkpoint


class LedgerDamaged(CorruptDataError):
    """The ledger is unreadable, or blob files it references are missing. The message gives `what` and a remedy."""

    def __init__(self, folder: Path, what: str) -> None:
        self.what = what
        out = f"restore its last snapshot with: douga recover {shlex.quote(str(folder))}"
        super().__init__(f"{what}; {out if snapshots.steps(folder) else 'choose another --name'}")


class Ledger(LedgerReader):
    """The tables and blobs of one run folder. Not thread-safe; the owner must serialize access.

    `identity` holds the settings that all runs on this ledger must share; `name` is the file name. Raises `ConfigError`
    if the folder is not usable or the stored identity or schema differs, and `LedgerDamaged` if the file is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], name: str = LEDGER) -> None:
        self.folder = folder
        self._written: list[str] = []  # files written by the current batch, to sync before its commit
        self._staged: list[StagedBlob] = []  # staged blobs that the current batch references
        self._touched: list[tuple[str, str]] = []  # digest and file of blobs that the batch wrote or dropped
        self._garbage: deque[str] = deque()  # files that no commit references any more
        self.changes = dict.fromkeys(Work, 1)  # see `Leases.changes`
        self._news: set[Work] = set()  # what the current batch may have made available
        try:
            self.blobs = BlobStore(folder / "blobs")
            database = sqlite3.connect(folder / name, isolation_level=None, check_same_thread=False)
            super().__init__(folder / name, database)
        except (OSError, StorageError, sqlite3.Error) as error:
            raise ConfigError(f"{folder}: cannot be a run folder ({error}); choose another --root or --name") from None
        try:
            self._open(identity)
        except BaseException as error:
            self._db.close()
            if not isinstance(error, sqlite3.Error):
                raise
            raise self._unreadable(error) from None

    def _unreadable(self, error: sqlite3.Error) -> ConfigError | LedgerDamaged:
        if is_damage(error):
            return LedgerDamaged(self.folder, f"{self.path}: damaged ({error})")
        return ConfigError(f"{self.path}: {describe_disk_error(error) or error}")

    def _open(self, identity: Mapping[str, Any]) -> None:
        if not self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            if snapshots.steps(self.folder):  # opening an empty ledger would delete all blobs
                raise LedgerDamaged(self.folder, f"{self.path}: missing or empty, though the run has snapshots of it")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {LEDGER_VERSION}; COMMIT;")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA temp_store = MEMORY")  # else a full TMPDIR looks like a full disk of the run
        self._db.execute(f"PRAGMA journal_size_limit = {LARGEST_LOG}")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found != LEDGER_VERSION:
            raise ConfigError(
                f"{self.path}: ledger of schema {found}, this program reads {LEDGER_VERSION}; choose another --name"
            )
        problem = self._db.execute("PRAGMA quick_check").fetchone()[0]
        if problem != "ok":
            raise LedgerDamaged(self.folder, f"{self.path}: damaged ({' '.join(problem.split())})")
        self._check_identity(identity)

    def settle_blobs(self) -> None:
        """Delete unreferenced files. Raises `LedgerDamaged` if referenced files are missing."""
        missing = sorted(self.files() - self.blobs.names())
        if missing:
            lost = f"{self.blobs.folder / missing[0]}: blob is missing ({len(missing)} in all)"
            raise LedgerDamaged(self.folder, lost)
        self.blobs.sweep(self.files())

    def files(self) -> set[str]:
        """The file names of all blobs."""
        return {row["file"] for row in self.all("SELECT file FROM blobs")}

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        """Raises `ConfigError` if a setting in `identity` differs from the stored one."""
        text = self.meta("identity", None)
        if text is None:
            self.set_meta("identity", json.dumps(dict(identity)))
            return
        stored = json.loads(text)
        for key, value in identity.items():
            if stored.get(key) != value:
                raise ConfigError(
                    f"{self.path}: made with {key} = {stored.get(key)!r}, this run has {value!r}; "
                    "use the same value, or another --name"
                )

    # Transactions.

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Run the operations in the block in one commit: on exit all of them are durable, or none."""
        self._written, self._staged, self._touched = [], [], []
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            if self._written:
                self.blobs.sync(self._written)
            self.run("COMMIT")
            self._count_news()
        except BaseException:
            with suppress(sqlite3.Error):  # report the first error
                if self.in_batch:
                    self._db.execute("ROLLBACK")
            raise
        finally:
            with suppress(sqlite3.Error, StorageError):  # on failure the next opening deletes the files
                self._settle()

    def tell(self, *kinds: Work) -> None:
        """Say that the current batch may make work available, so that idle workers ask for it after the commit."""
        self._news.update(kinds)

    def _count_news(self) -> None:
        for kind in self._news:
            self.changes[kind] += 1
        self._news.clear()

    @property
    def in_batch(self) -> bool:
        """Whether a batch is open. Some errors make SQLite roll it back by itself."""
        return self._db.in_transaction

    def _settle(self) -> None:
        """After a batch, find out which of its files are referenced and which are garbage."""
        for staged in self._staged:
            staged.taken = self._is_referenced(staged.digest, staged.file)
        self._garbage.extend(file for digest, file in self._touched if not self._is_referenced(digest, file))

    def _is_referenced(self, digest: str, file: str) -> bool:
        return self.first("SELECT 1 FROM blobs WHERE digest = ? AND file = ?", digest, file) is not None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One atomic operation of a batch. If it raises, only this operation is rolled back."""
        if not self.in_batch:
            raise RuntimeError(f"{self.path}: an operation needs an open batch")
        self.run("SAVEPOINT operation")
        try:
            yield
            self.run("RELEASE operation")
        except BaseException:
            if self.in_batch:
                self._undo_operation()
            raise

    def _undo_operation(self) -> None:
        try:
            self.run("ROLLBACK TO operation")
            self.run("RELEASE operation")
        except BaseException:  # never commit half an operation with the others
            self._db.execute("ROLLBACK")
            raise

    def clear(self) -> None:
        """Delete garbage files of past batches. Needs no lock."""
        while self._garbage:
            with suppress(IndexError):  # another thread took the last one
                self.blobs.discard(self._garbage.popleft())

    def run(self, sql: str, *values: Any) -> int:
        """Execute a statement. Returns the number of changed rows."""
        with writing(self.path):
            return self._db.execute(sql, values).rowcount

    def set_meta(self, key: str, value: Any) -> None:
        """Store a small value under `key`."""
        self.run("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # Groups.

    def admit(self, ordinal: int, purpose: Purpose, prompt: bytes, position: int, required_version: int | None) -> None:
        """Insert a new pending group. Only samplers with `required_version` may sample it; None: any sampler."""
        self.run(
            "INSERT INTO groups (ordinal, purpose, state, prompt, position, required_version) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            *(ordinal, purpose, State.PENDING, prompt, position, required_version),
        )
        self.set_meta(f"admitted:{purpose}", self.admitted(purpose) + 1)
        self.tell(Work.SAMPLING)

    def move(self, ordinal: int, to: State, **columns: Any) -> None:
        """Change a group's state and other columns. Raises `RuntimeError` if `rules.TRANSITIONS` forbids it."""
        old = State(self.group(ordinal)["state"])
        if not rules.allowed(old, to):
            raise RuntimeError(f"group {ordinal}: {old} may not become {to}")
        self.update(ordinal, state=to, **columns)
        self.tell(*NEWS.get(to, ()))
        if to not in UNSAMPLED:
            self.run("DELETE FROM unsampled WHERE ordinal = ?", ordinal)

    def update(self, ordinal: int, **columns: Any) -> None:
        """Set columns of a group, without checking the transition."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self.run(f"UPDATE groups SET {names} WHERE ordinal = ?", *columns.values(), ordinal)

    def snapshot(self, step: int, kept: int) -> None:
        """Take a snapshot for the checkpoint of `step` (0: none); delete all but those of the `kept` newest ones."""
        if step:
            snapshots.take(self._db, self.folder, step)
        snapshots.keep(self.folder, self.checkpoints()[-kept:])

    def waste(self, reason: WasteReason, ordinal: int, *candidates: str) -> None:
        """Count candidates of a group that were sampled for nothing, each once per reason."""
        for candidate in candidates:
            self.run("INSERT OR IGNORE INTO wasted_candidates VALUES (?, ?, ?)", ordinal, candidate, reason)

    # Blobs of groups.

    def attach(self, ordinal: int, name: str, staged: StagedBlob) -> bool:
        """Reference a staged blob as `name` of a group. False if the content is already stored; then that is reused."""
        values = (staged.digest, staged.size, staged.file)
        staged.taken = self.run("INSERT OR IGNORE INTO blobs (digest, size, file) VALUES (?, ?, ?)", *values) > 0
        if staged.taken:
            self._staged.append(staged)
        self.run("INSERT INTO group_blobs VALUES (?, ?, ?)", ordinal, name, staged.digest)
        return staged.taken

    def store(self, ordinal: int, name: str, array: SerializedTensor) -> None:
        """Write an array as blob `name` of a group, within the current batch."""
        staged = self.blobs.write([array])
        self._touched.append((staged.digest, staged.file))
        if self.attach(ordinal, name, staged):
            self._written.append(staged.file)

    def has(self, ordinal: int, name: str) -> bool:
        """Whether the group has a blob `name`."""
        return self.first("SELECT 1 FROM group_blobs WHERE ordinal = ? AND name = ?", ordinal, name) is not None

    def open(self, ordinal: int, name: str) -> BlobHandle:
        """Open a group's blob. Read it after the commit, so that other calls need not wait for the disk."""
        sql = "SELECT file FROM group_blobs JOIN blobs USING (digest) WHERE ordinal = ? AND name = ?"
        return self.blobs.open(self.one(sql, ordinal, name)["file"])

    def keep_only(self, ordinal: int, names: Sequence[str] = ()) -> None:
        """Drop all blobs of a group except `names`. Files without references become garbage."""
        for row in self.all(
            "SELECT name, digest, file FROM group_blobs JOIN blobs USING (digest) WHERE ordinal = ?", ordinal
        ):
            if row["name"] in names:
                continue
            self.run("DELETE FROM group_blobs WHERE ordinal = ? AND name = ?", ordinal, row["name"])
            if self.first("SELECT 1 FROM group_blobs WHERE digest = ?", row["digest"]) is None:
                self.run("DELETE FROM blobs WHERE digest = ?", row["digest"])
                self._touched.append((row["digest"], row["file"]))

    def names(self, ordinal: int) -> list[str]:
        """The names of a group's blobs."""
        return [
            row["name"] for row in self.all("SELECT name FROM group_blobs WHERE ordinal = ? ORDER BY name", ordinal)
        ]

    def group_bytes(self, ordinal: int) -> int:
        """Total size of a group's blobs in bytes."""
        sql = "SELECT COALESCE(SUM(size), 0) FROM group_blobs JOIN blobs USING (digest) WHERE ordinal = ?"
        return int(self.one(sql, ordinal)[0])
