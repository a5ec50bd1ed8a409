"""Disk errors: everything that writes to a run's folder raises `StorageError` and leaves no partial file."""

from __future__ import annotations

import errno
import sqlite3
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest
import torch

from common.errors import ScratchError, StorageError
from common.errors.disk import describe_disk_error, writing
from common.exchange.storage import snapshots
from common.exchange.storage.blobs import BlobStore, raw
from common.rpc.server import serving
from common.weights import sync
from common.weights.source import weight_service
from common.weights.store import WeightStore
from common.weights.sync import WeightPuller
from common.weights.tensor_file import TensorStream
from deploy.run_dir.jsonl import JsonLines, read_json_lines
from tests.support.disk import file_size_limit
from tests.support.exchange.fakes import (
    candidate,
    conditioning,
    make_pairs,
    open_exchange,
    sample,
    small,
    train,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device; free some space, then rerun the same command to resume"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded; free some space"),
        (OSError(errno.EROFS, "x"), "Read-only file system; make it writable"),
        (OSError(errno.EIO, "x"), "Input/output error; check the disk"),
        (RuntimeError("Error while serializing: I/O error: full (os error 28)"), "No space left on device; free"),
    ],
)
def test_a_disk_error_says_what_to_do(error: Exception, message: str) -> None:
    with pytest.raises(StorageError, match=f"^run/blobs/0: cannot be written: {message}"), writing(Path("run/blobs/0")):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), ValueError("x"), sqlite3.IntegrityError("x")])
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)), writing(Path("run")):
        raise error
    assert describe_disk_error(error) is None


def test_an_error_that_names_a_file_keeps_that_name() -> None:
    with (
        pytest.raises(StorageError, match=r"^/other/file: cannot be written: Permission denied"),
        writing(Path("run")),
    ):
        raise PermissionError(errno.EACCES, "x", "/other/file")


def test_a_blob_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with file_size_limit(1000), pytest.raises(StorageError, match="cannot be written: File too large"):
        store.write([raw(bytes(2000))])
    assert not list(tmp_path.iterdir())
    assert store.open(store.write([raw(bytes(2000))]).file).read_one() == raw(bytes(2000))


def test_a_record_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """The file can be closed and written to again."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write(step=1)
    with file_size_limit(60), pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written: File too large"):
        lines.write(step=2, text="x" * 100)
    lines.write(step=3)
    lines.close()
    assert [record["step"] for record in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_version_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    store, state = WeightStore(tmp_path), {"w": torch.ones(5000)}
    message = r"v000001: cannot be written: File too large"
    with file_size_limit(10_000), pytest.raises(StorageError, match=message):
        store.publish(TensorStream.of(state), version=1, step=1, pushes=1, kind="full", base=1)
    assert not list(tmp_path.iterdir())
    store.publish(TensorStream.of(state), version=1, step=1, pushes=1, kind="full", base=1)
    assert store.versions() == [1]


def test_a_call_is_rolled_back_when_the_disk_is_full(tmp_path: Path) -> None:
    """It can be retried once there is space. Until then it leaves nothing behind, not even a file."""
    exchange = open_exchange(tmp_path, small())
    lease = exchange.lease_sampling("sampler-0", 0)
    assert lease is not None
    exchange.submit_conditioning(lease, conditioning(lease.prompt))
    before, files = exchange.counts(), set(tmp_path.rglob("*"))
    with file_size_limit((tmp_path / "ledger.sqlite-wal").stat().st_size):
        for index in (0, 1):
            with pytest.raises(StorageError, match=r"ledger\.sqlite: cannot be written: "):
                exchange.submit_candidate(lease, candidate(lease, index))
    assert (exchange.counts(), set(tmp_path.rglob("*"))) == (before, files)
    exchange.check()
    for index in (0, 1):
        assert exchange.submit_candidate(lease, candidate(lease, index)).accepted
    exchange.check()


def test_a_ledger_damaged_during_a_run_is_reported(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, small())
    make_pairs(exchange, 2)
    exchange._ledger.run("PRAGMA wal_checkpoint(TRUNCATE)")
    exchange._ledger.run("PRAGMA shrink_memory")
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(file.read_bytes()[:4096] + bytes(range(256)) * ((file.stat().st_size - 4096) // 256))
    with pytest.raises(StorageError, match=r"ledger\.sqlite: damaged: database disk image is malformed; rerun the"):
        sample(exchange)


def test_a_snapshot_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, small(learner__keep_checkpoints=2))
    make_pairs(exchange, 4)
    train(exchange, 1)
    exchange.record_checkpoint(1)
    train(exchange, 2)
    exchange._ledger.run("PRAGMA wal_checkpoint(TRUNCATE)")
    size = snapshots.path_of(tmp_path, 1).stat().st_size
    with file_size_limit(size - 4096), pytest.raises(StorageError, match=r"snapshots/step-000002\.sqlite: cannot be"):
        exchange.record_checkpoint(2)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-000001.sqlite"]
    exchange.record_checkpoint(2)
    assert snapshots.steps(tmp_path) == [1, 2]
    exchange.check()


def test_a_puller_with_a_full_disk_says_so_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The sampler decides what to do without the new version."""
    monkeypatch.setattr(sync, "DISK_SECONDS", 0.01)
    store = WeightStore(tmp_path / "learner")
    state = TensorStream.of({"w": torch.ones(5000)})
    store.publish(state, version=0, step=0, pushes=0, kind="full", base=0)
    with ExitStack() as stack:
        service = stack.enter_context(serving(weight_service(store)))
        limit = stack.enter_context(ExitStack())
        limit.enter_context(file_size_limit(1000))
        puller = stack.enter_context(WeightPuller(service.address, lambda: 0, tmp_path / "mine", "sampler-0"))
        ends = time.monotonic() + 20.0
        while puller.failed < 3:
            assert time.monotonic() < ends
            Event().wait(0.01)
        with pytest.raises(
            ScratchError, match=r"^sampler-0: weights not staged: .*v000000: cannot be .*; free some space$"
        ):
            puller.check_disk()
        assert puller.choose(7, 0) == 7
        assert [record.message for record in caplog.records].count(puller._disk_fault) == 1
        limit.close()
        assert puller.wait(0, 20.0)
        puller.check_disk()
