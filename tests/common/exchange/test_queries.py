"""Read-only queries on a run's ledger: pairs and their clips, leases, the lock's owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import ConfigError, StorageError
from common.exchange.admission import admission_refusal
from common.exchange.api import State
from common.exchange.queries import Work, newest_groups, read_blob, work_in_progress
from common.exchange.storage.group_blobs import SHOWN
from common.exchange.storage.ledger_reader import NotBegun, open_readonly
from common.exchange.storage.run_lock import lock_owner
from common.messages import Purpose
from tests.support.exchange.fakes import (
    candidate,
    conditioning,
    heldout,
    make_pairs,
    open_exchange,
    sample,
    small,
    train,
)

CONFIG = small(exchange__max_lag=20, exchange__pipeline_depth=20)


def test_the_newest_groups_and_their_clips(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, CONFIG)
    make_pairs(exchange, 3)
    train(exchange, 1)
    with open_readonly(tmp_path) as ledger:
        pairs = newest_groups(ledger, 2)
        assert newest_groups(ledger, 0) == []
    assert [(one.ordinal, one.state, one.text) for one in pairs] == [
        (2, "ready", "cat 2 walks"),
        (1, "trained", "cat 1 walks"),
    ]
    first = pairs[0]
    assert [(one.id, one.index) for one in first.kept] == [("2-0-v0", 0), ("2-1-v0", 1)]
    assert [one.reward for one in first.kept] == pytest.approx([0.8, 0.3])
    assert [one.scores["motion"] for one in first.kept] == [80.0, 30.0]
    assert [one.weight for one in first.kept] == pytest.approx([2**0.8 - 2**0.3] * 2)
    assert first.kept[0].file is not None
    assert read_blob(tmp_path / "blobs" / first.kept[0].file)[:3] == b"mp4"
    exchange.close()


def test_deleted_clips_are_reported_as_missing(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, CONFIG)
    make_pairs(exchange, SHOWN + 1)
    with open_readonly(tmp_path) as ledger:
        pairs = newest_groups(ledger, SHOWN + 1)
    assert [one.kept[0].file is None for one in pairs] == [False] * SHOWN + [True]
    file = tmp_path / "blobs" / str(pairs[0].kept[1].file)
    file.unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        read_blob(file)
    exchange.close()


def test_work_in_progress(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, CONFIG)
    make_pairs(exchange, 2)
    sample(exchange)
    exchange.lease_candidates("rewarder-1", 1)
    exchange.lease_batch("learner-0", 1, 2)
    lease = exchange.lease_sampling("sampler-2", 0)
    assert lease is not None
    exchange.submit_conditioning(lease, conditioning(lease.prompt))
    exchange.submit_candidate(lease, candidate(lease, 0))
    exchange.enqueue(heldout(1, Purpose.PROBE), 0)
    exchange.lease_sampling("sampler-3", 0)
    with open_readonly(tmp_path) as ledger:
        found = work_in_progress(ledger)
    assert found == {
        "sampler-2": Work("sampling", 3, "train", 1, 2),
        "sampler-3": Work("sampling", 1 << 40, "probe", 0, 1),
        "rewarder-1": Work("scoring", 0, "train", 0, 1),
        "learner-0": Work("learning", 1, "train", 0, 2),
    }
    for worker, work in found.items():
        exchange.release(worker)
        with open_readonly(tmp_path) as ledger:
            assert work_in_progress(ledger)[worker] == replace(work, lost=True)
    exchange.close()


def test_admission_refusal_equals_the_exchanges_refusal(tmp_path: Path) -> None:
    config = small(exchange__max_lag=0)
    exchange = open_exchange(tmp_path, config)
    with open_readonly(tmp_path) as ledger:
        assert admission_refusal(ledger, config, 0) is None
    make_pairs(exchange, 2)
    assert exchange.lease_sampling("sampler-0", 0) is None
    with open_readonly(tmp_path) as ledger:
        refusal = admission_refusal(ledger, config, 0)
        assert refusal is not None
        assert refusal.message == exchange.refusal != ""
    exchange.close()


def test_a_readonly_ledger_is_a_snapshot_and_locks_nothing(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, CONFIG)
    make_pairs(exchange, 1)
    with open_readonly(tmp_path) as ledger:
        with pytest.raises(StorageError, match="Read-only"):
            ledger.all("UPDATE groups SET state = 'failed'")
        before = ledger.counts(Purpose.TRAIN)
        make_pairs(exchange, 1)
        assert ledger.counts(Purpose.TRAIN) == before  # the reader sees one snapshot
    with open_readonly(tmp_path) as ledger:
        assert ledger.counts(Purpose.TRAIN)[State.READY] == 2
    exchange.close()


def test_missing_and_damaged_ledgers_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotBegun, match="missing; the run has not begun"), open_readonly(tmp_path):
        pass
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(NotBegun, match="empty; the run has not begun"), open_readonly(tmp_path):
        pass
    (tmp_path / "ledger.sqlite").write_bytes(b"no database at all " * 500)
    with pytest.raises(ConfigError, match="cannot be read: file is not a database"), open_readonly(tmp_path):
        pass


HOLDS = """
import sys
from pathlib import Path
from tests.support.exchange.fakes import make_pairs, open_exchange, small
exchange = open_exchange(Path(sys.argv[1]), small(exchange__max_lag=20))
make_pairs(exchange, 2)
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_owner_and_ledger_after_a_kill(tmp_path: Path) -> None:
    assert lock_owner(tmp_path) is None
    root = Path(__file__).parents[3]
    command, env = [sys.executable, "-c", HOLDS, str(tmp_path)], os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "held\n"
            assert lock_owner(tmp_path) == run.pid
            assert lock_owner(tmp_path) == run.pid  # a query does not take the lock
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait(30)
    assert lock_owner(tmp_path) is None
    with open_readonly(tmp_path) as ledger:  # its write-ahead log is not checkpointed yet
        assert ledger.counts(Purpose.TRAIN)[State.READY] == 2
    open_exchange(tmp_path, small(exchange__max_lag=20)).close()
