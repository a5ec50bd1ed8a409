"""Pruning: keeps all rows that a resume may need, and all counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import RunConfig
from common.errors import ConfigError
from common.exchange import retention
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.storage.ledger import LEDGER
from common.messages import Purpose
from tests.support.exchange.fakes import (
    candidate,
    heldout,
    make_pairs,
    open_exchange,
    sample,
    score_all,
    small,
    train,
    weight_version,
)


def steps(exchange: LocalExchange, first: int, last: int, mark: int = 1) -> None:
    """Optimizer steps of two pairs each, a version after every step, a checkpoint after every `mark` steps."""
    if exchange.next_version() == 0:
        exchange.announce(weight_version(0, 0, 0))
    for step in range(first, last + 1):
        make_pairs(exchange, 2, exchange.current_version())
        assert len(train(exchange, step)) == 2
        exchange.announce(weight_version(exchange.next_version(), step, step))
        if step % mark == 0:
            exchange.record_checkpoint(step)


def rows(exchange: LocalExchange, table: str) -> int:
    return exchange._ledger.one(f"SELECT COUNT(*) FROM {table}")[0]


def keeping(groups: int, **flags: object) -> RunConfig:
    return small(exchange__keep_groups=groups, exchange__max_lag=0, steps=1000, **flags)


def test_pruning_bounds_the_ledger_and_keeps_the_counts(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, keeping(10))
    steps(exchange, 1, 20)
    sizes = [rows(exchange, table) for table in ("groups", "candidates", "batch_entries", "versions", "checkpoints")]
    assert sizes == [10, 20, 10, 2, 1]
    bytes_then = (tmp_path / LEDGER).stat().st_size
    steps(exchange, 21, 40)
    assert [
        rows(exchange, table) for table in ("groups", "candidates", "batch_entries", "versions", "checkpoints")
    ] == sizes
    assert (tmp_path / LEDGER).stat().st_size <= bytes_then + 3 * 4096
    assert exchange.counts()[State.TRAINED] == 80
    assert exchange._ledger.load(1).spent == 80
    assert retention.count(exchange._ledger, retention.TIMES_TRAINED) == 70
    exchange.check()
    exchange.close()


def test_pruning_keeps_what_a_rollback_may_need(tmp_path: Path) -> None:
    """A resume from the older of two checkpoints repeats the same steps."""
    config = keeping(1, learner__keep_checkpoints=2)
    exchange = open_exchange(tmp_path, config)
    steps(exchange, 1, 30, mark=10)
    assert exchange.counts()[State.TRAINED] == 60
    assert rows(exchange, "groups") == 20  # those of the steps after 20
    exchange.close()
    exchange = open_exchange(tmp_path, config)
    with pytest.raises(ConfigError, match="from steps 20 to 30"):
        exchange.rollback(19)
    exchange.rollback(20)
    exchange.check()
    assert (exchange.counts()[State.TRAINED], exchange.counts()[State.READY]) == (40, 20)
    assert exchange.current_version() == 20
    assert [train(exchange, step) for step in (21, 22)] == [[40, 41], [42, 43]]
    exchange.check()
    exchange.close()


def test_resuming_at_the_last_step_after_its_groups_were_pruned(tmp_path: Path) -> None:
    config = keeping(1)
    exchange = open_exchange(tmp_path, config)
    steps(exchange, 1, 5)
    assert rows(exchange, "groups") == 1
    exchange.close()
    exchange = open_exchange(tmp_path, config)
    exchange.rollback(5)
    steps(exchange, 6, 6)
    exchange.check()
    exchange.commit_step(3, [4, 5])  # a retry of a step that was pruned has no effect
    with pytest.raises(ValueError, match="did not lease"):
        exchange.commit_step(6, [4, 5])
    exchange.close()


def test_pruned_ties_failures_and_waste_are_counted(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, keeping(2, exchange__max_attempts=1))
    lease = sample(exchange)
    assert lease is not None
    score_all(exchange, {"0-0-v0": 50.0, "0-1-v0": 50.0})
    lease = exchange.lease_sampling("sampler-0", 0)
    assert lease is not None
    exchange.fail_sampling(lease, "no such image")
    assert exchange.submit_candidate(lease, candidate(lease, 0)).reason == "lost lease"
    steps(exchange, 1, 1)
    found = exchange.counts()
    assert (found[State.TIED], found[State.FAILED], found[State.TRAINED]) == (1, 1, 2)
    assert exchange.failures() == {}  # of pruned groups only counts are left
    assert exchange.wasted() == {"late": 1}
    assert exchange.submit_candidate(lease, candidate(lease, 1)).reason == "lost lease"
    assert exchange.wasted() == {"late": 1}
    assert exchange.lease_candidates("rewarder-0", 9) == []
    exchange.check()
    exchange.close()


def test_a_pruned_version_is_refused_as_stale(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, keeping(1))
    steps(exchange, 1, 9)
    assert 0 < retention.highest_pruned_version(exchange._ledger) < exchange.current_version()
    for version in (0, 1):
        assert exchange.lease_sampling("sampler-0", version) is None
        assert "pushes old" in exchange.refusal
    with pytest.raises(ValueError, match="never announced"):
        exchange.lease_sampling("sampler-0", 99)
    assert not exchange.rolled_back(1)
    exchange.close()


def test_retired_probes_are_pruned(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, keeping(100))
    exchange.announce(weight_version(0, 0, 0))
    for version in range(1, 30):
        exchange.announce(weight_version(version, 0, 0))
        exchange.enqueue(heldout(2, Purpose.PROBE), 0)
        exchange.enqueue(heldout(2, Purpose.PROBE), version)
        for required in (0, 0, version, version):
            sample(exchange, required)
        score_all(exchange)
        assert len(exchange.results(Purpose.PROBE, version)) == 2
        exchange.retire_probes()
    assert len(exchange.results(Purpose.PROBE, 0)) == 2
    assert rows(exchange, "groups") - exchange.counts()[State.TIED] < 2 + 100
    assert exchange._ledger.one("SELECT COUNT(*) FROM groups WHERE purpose = ?", Purpose.PROBE)[0] == 2
    assert exchange.counts(Purpose.PROBE)[State.DONE] == 2 + 58
    exchange.check()
    exchange.close()


def test_the_write_ahead_log_is_truncated_after_a_large_transaction(tmp_path: Path) -> None:
    exchange = open_exchange(tmp_path, keeping(1))
    exchange._commit(exchange._ledger.set_meta, "large", "x" * (40 << 20))
    log = tmp_path / f"{LEDGER}-wal"
    assert log.stat().st_size > 40 << 20
    for number in range(3):
        exchange._commit(exchange._ledger.set_meta, "large", number)
    assert log.stat().st_size <= 1 << 24
    exchange.close()
