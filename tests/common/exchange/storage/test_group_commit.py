"""Many threads call one exchange: calls run in order and share commits; blob files stay as long as they are needed."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from common.errors import StorageError
from common.errors.disk import writing
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.storage.blobs import BlobStore
from common.exchange.storage.ledger import Ledger
from common.messages import SamplingLease, Score
from tests.support.exchange import fakes
from tests.support.exchange.fakes import candidate, conditioning, small

SECONDS = 20  # timeout of every wait


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[LocalExchange]:
    opened = fakes.open_exchange(tmp_path, small(exchange__max_lag=20))
    yield opened
    opened.check()
    known = {row["file"] for row in opened._ledger.all("SELECT file FROM blobs")}
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == known
    opened.close()


def lease(exchange: LocalExchange) -> SamplingLease:
    found = exchange.lease_sampling("sampler-0", 0)
    assert found is not None
    exchange.submit_conditioning(found, conditioning(found.prompt))
    return found


class Commits:
    """Counts commits; the first waits until `released`, with `entered` set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.entered, self.released = 0, Event(), Event()
        real = Ledger.batch

        def batch(ledger: Ledger) -> Any:
            self.count += 1
            if self.count == 1:
                self.entered.set()
                assert self.released.wait(SECONDS)
            return real(ledger)

        monkeypatch.setattr(Ledger, "batch", batch)


def queued(exchange: LocalExchange, pool: ThreadPoolExecutor, number: int, call: Any, *arguments: Any) -> Future[Any]:
    """Start a call on its own thread and wait until it is the `number`th in the queue."""
    asked, queue = pool.submit(call, *arguments), exchange._commit_queue._queue
    for _ in range(10_000):
        if len(queue) == number:
            return asked
        Event().wait(0.001)
    raise AssertionError("the call never queued")


def test_queued_calls_share_a_commit_in_order(exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five calls queue behind a running one. One of them fails, which does not affect the others."""
    commits = Commits(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(exchange.lease_sampling, "sampler-0", 0)
        assert commits.entered.wait(SECONDS)
        rest = [queued(exchange, pool, 1 + n, exchange.lease_sampling, f"s{n}", 0 if n != 2 else 9) for n in range(5)]
        commits.released.set()
        leases = [one.result(SECONDS) for one in (first, *rest[:2], *rest[3:])]
        with pytest.raises(ValueError, match="version 9 was never announced"):
            rest[2].result(SECONDS)
    assert commits.count == 2
    assert [one.prompt.ordinal for one in leases] == [0, 1, 2, 3, 4]
    assert [one.worker for one in leases[1:]] == ["s0", "s1", "s3", "s4"]


def test_only_the_failed_operation_of_a_batch_is_rolled_back(
    exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last candidate without conditioning is rejected after its blobs were referenced."""
    bad, good = exchange.lease_sampling("sampler-0", 0), lease(exchange)
    assert bad is not None
    exchange.submit_candidate(bad, candidate(bad, 0))
    commits = Commits(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        held = pool.submit(exchange.counts)
        assert commits.entered.wait(SECONDS)
        one = queued(exchange, pool, 1, exchange.submit_candidate, good, candidate(good, 0))
        other = queued(exchange, pool, 2, exchange.submit_candidate, bad, candidate(bad, 1))
        last = queued(exchange, pool, 3, exchange.submit_candidate, good, candidate(good, 1))
        commits.released.set()
        assert one.result(SECONDS).accepted
        assert last.result(SECONDS).accepted
        with pytest.raises(ValueError, match="its conditioning must be submitted"):
            other.result(SECONDS)
        held.result(SECONDS)
    assert commits.count == 2
    counts = exchange.counts()
    assert (counts[State.SAMPLED], counts[State.SAMPLING]) == (1, 1)
    exchange.submit_conditioning(bad, conditioning(bad.prompt))
    assert exchange.submit_candidate(bad, candidate(bad, 1)).accepted  # it was not stored before


def files(exchange: LocalExchange) -> set[str]:
    return exchange._ledger.blobs.names()


def test_a_failed_commit_is_retried_call_by_call(exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing one file at a time fails, which only the lease of a new group does: it stores a first frame."""
    found = lease(exchange)
    before = files(exchange)
    monkeypatch.setattr(BlobStore, "sync", disk_full(BlobStore.sync, 1))  # a candidate syncs two files at once
    commits = Commits(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        held = pool.submit(exchange.counts)
        assert commits.entered.wait(SECONDS)
        good = queued(exchange, pool, 1, exchange.submit_candidate, found, candidate(found, 0))
        bad = queued(exchange, pool, 2, exchange.lease_sampling, "sampler-1", 0)
        also = queued(exchange, pool, 3, exchange.counts)
        commits.released.set()
        held.result(SECONDS)
        assert good.result(SECONDS).accepted
        assert also.result(SECONDS)[State.SAMPLING] == 1
        with pytest.raises(StorageError, match="blobs: cannot be written: No space left on device; free some space"):
            bad.result(SECONDS)
    assert commits.count == 1 + 1 + 3
    assert len(files(exchange) - before) == 2
    assert sum(exchange.counts().values()) == 1


def disk_full(sync: Any, count: int) -> Any:
    """Returns `sync`, but the disk is full when it is called with `count` files."""

    def full(store: BlobStore, files: Any) -> None:
        if len(files) == count:
            with writing(store.folder):
                raise OSError(errno.ENOSPC, "full")
        sync(store, files)

    return full


@pytest.mark.parametrize("sql", ["SAVEPOINT", "INSERT INTO candidates", "RELEASE", "COMMIT"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR_WRITE])
def test_a_call_is_rolled_back_wherever_sqlite_fails(exchange: LocalExchange, sql: str, code: int) -> None:
    """At its savepoint, inside it, at its end, in the commit; also if SQLite itself rolls back the whole batch."""
    found = lease(exchange)
    before, real = files(exchange), exchange._ledger._db
    for ends_batch in (False, True):
        exchange._ledger._db = FailingConnection(real, sql, code, ends_batch)  # type: ignore[assignment]
        with pytest.raises(StorageError, match=r"ledger\.sqlite: cannot be written: "):
            exchange.submit_candidate(found, candidate(found, 0))
        exchange._ledger._db = real
        assert files(exchange) == before
        assert exchange._ledger.candidates(0) == []
    assert exchange.submit_candidate(found, candidate(found, 0)).accepted


class FailingConnection:
    """A database connection that fails at the first statement that begins with `sql`."""

    def __init__(self, database: Any, sql: str, code: int, ends_batch: bool) -> None:
        self._database, self._sql, self._code, self._ends_batch = database, sql, code, ends_batch

    def execute(self, sql: str, *values: Any) -> Any:
        if sql.startswith(self._sql):
            self._sql = "nothing"
            if self._ends_batch:
                self._database.execute("ROLLBACK")
            error = sqlite3.OperationalError("failed")
            error.sqlite_errorcode = self._code
            raise error
        return self._database.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def test_a_batch_that_sqlite_rolled_back_is_retried(exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three calls makes SQLite roll back the batch. All three calls are retried and succeed."""
    found = lease(exchange)
    commits, real = Commits(monkeypatch), exchange._ledger._db
    with ThreadPoolExecutor(8) as pool:
        held = pool.submit(exchange.counts)
        assert commits.entered.wait(SECONDS)
        one = queued(exchange, pool, 1, exchange.submit_candidate, found, candidate(found, 0))
        lost = queued(exchange, pool, 2, exchange.fail_sampling, found, "broken image")
        last = queued(exchange, pool, 3, exchange.submit_candidate, found, candidate(found, 1))
        exchange._ledger._db = FailingConnection(real, "UPDATE groups", sqlite3.SQLITE_IOERR, True)  # type: ignore[assignment]
        commits.released.set()
        held.result(SECONDS)
        assert one.result(SECONDS).accepted
        lost.result(SECONDS)  # failed once, then succeeded
        assert last.result(SECONDS).reason == "lost lease"
    exchange._ledger._db = real
    assert [row["id"] for row in exchange._ledger.candidates(0)] == ["0-0-v0"]


def test_an_interrupt_of_one_thread_does_not_affect_the_others(
    exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(BaseException):
        pass

    def interrupted() -> None:
        raise Interrupt

    commits = Commits(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        held = pool.submit(exchange.counts)
        assert commits.entered.wait(SECONDS)
        bad = queued(exchange, pool, 1, exchange._commit, interrupted)
        good = queued(exchange, pool, 2, exchange.lease_sampling, "sampler-0", 0)
        commits.released.set()
        held.result(SECONDS)
        with suppress(Interrupt):  # one of the two threads ran both calls
            bad.result(SECONDS)
        with suppress(Interrupt):
            assert good.result(SECONDS) is not None
    assert sum(exchange.counts().values()) <= 1
    assert not exchange._commit_queue._queue


@pytest.mark.parametrize("side", ["group", "clips", "pairs"])
def test_a_lease_with_an_unreadable_blob_is_released(exchange: LocalExchange, side: str) -> None:
    """If a blob is damaged, the caller gets an error and the lease is released."""
    name, lease_it, state = {
        "group": ("image", lambda: exchange.lease_sampling("sampler-0", 0), State.PENDING),
        "clips": ("clip/1", lambda: exchange.lease_candidates("rewarder-0", 2), State.SAMPLED),
        "pairs": ("latents/1", lambda: exchange.lease_batch("learner-0", 1, 2), State.READY),
    }[side]
    if side == "group":
        exchange.fail_sampling(lease(exchange), "again")
    elif side == "clips":
        fakes.sample(exchange)
    else:
        fakes.make_pairs(exchange, 2)
    path = Path(exchange._ledger.open(0, name)._path)
    whole, before = path.read_bytes(), exchange.counts()
    path.write_bytes(whole[:-1] + b"?")
    for _ in range(5):  # more than max_attempts: it does not count as a failure
        with pytest.raises(
            StorageError, match=f"{path}: damaged: content differs .*: douga recover {path.parent.parent}"
        ):
            lease_it()
        assert exchange.counts() == before
        assert exchange.counts()[state] > 0
    path.write_bytes(whole)
    assert lease_it()


def test_equal_content_staged_twice_is_stored_once(exchange: LocalExchange, tmp_path: Path) -> None:
    """Two samplers submit the same bytes at once; the second one finds them stored."""
    one, two = lease(exchange), lease(exchange)
    same = replace(candidate(one, 0), seed=two.seeds[0], ordinal=1, id="1-0-v0")
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(exchange.submit_candidate, one, candidate(one, 0)),
            pool.submit(exchange.submit_candidate, two, same),
        ]
        assert all(future.result(SECONDS).accepted for future in asked)
    rows = exchange._ledger.all("SELECT digest FROM group_blobs WHERE name IN ('latents/0', 'clip/0')")
    assert (len(rows), len({row["digest"] for row in rows})) == (4, 2)


def test_content_staged_again_survives_the_deletion_of_its_old_file(
    exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group drops a blob, and its file is deleted slowly; meanwhile another group submits the same content."""
    old, new = lease(exchange), lease(exchange)
    exchange.submit_candidate(old, candidate(old, 0))
    same = replace(candidate(old, 0), seed=new.seeds[0], ordinal=1, id="1-0-v0")
    for _ in range(2):  # the third failure drops the candidates
        exchange.fail_sampling(old, "broken")
        again = exchange.lease_sampling("sampler-0", 0)
        assert again is not None
        old = again
    entered, go, delete = Event(), Event(), BlobStore.delete

    def slow(store: BlobStore, file: str) -> None:
        if not entered.is_set():
            entered.set()
            assert go.wait(SECONDS)
        delete(store, file)

    monkeypatch.setattr(BlobStore, "delete", slow)
    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(exchange.fail_sampling, old, "broken")
        try:
            assert entered.wait(SECONDS)
            assert exchange.submit_candidate(new, same).accepted
        finally:
            go.set()
        failed.result(SECONDS)
    assert exchange._ledger.open(1, "latents/0").read_one() == same.latents


def test_leased_clips_can_be_read_after_their_group_failed(
    exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group fails while its clips are being read for a rewarder; the open files can still be read."""
    fakes.sample(exchange)
    unread = exchange._commit(exchange._scoring.lease_candidates, "rewarder-0", 2)
    broken = Score("0-0-v0", "heads-1", fakes.values(float("nan")))
    assert exchange.submit_scores("rewarder-1", [broken])[0].accepted
    assert exchange.counts()[State.FAILED] == 1
    assert exchange.bytes_on_disk() == 0
    assert [task.clip[:3] for task in unread.read()] == [b"mp4", b"mp4"]


def test_many_concurrent_samplers(exchange: LocalExchange) -> None:
    def work(number: int) -> int:
        done = 0
        while fakes.sample(exchange, worker=f"sampler-{number}") is not None:
            done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(work, range(8)))
    assert done == exchange.counts()[State.SAMPLED] == 42  # (20 + 1) pushes of 2
    fakes.score_all(exchange)
