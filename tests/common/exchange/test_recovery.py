"""Recovery of a damaged ledger: unfinished groups are sampled again, finished ones stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.errors import ConfigError
from common.exchange import recovery
from common.exchange.api import State
from common.exchange.recovery import Recovered
from common.exchange.storage import snapshots
from common.exchange.storage.group_blobs import SHOWN
from common.exchange.storage.ledger import LedgerDamaged
from common.messages import candidate_id
from tests.support.exchange.fakes import (
    candidate,
    conditioning,
    heldout,
    make_pairs,
    open_exchange,
    sample,
    score_all,
    small,
    source,
    train,
    weight_version,
)

CONFIG = small(exchange__max_lag=9, learner__keep_checkpoints=2, sampler__candidates=3)


def run_past_checkpoint(folder: Path, config: RunConfig = CONFIG) -> None:
    """Checkpoint 1 with ready pairs, a sampled group and a leased one; then the run continues to step 3 without a
    checkpoint."""
    exchange = open_exchange(folder, config)
    exchange.announce(weight_version(0, 0, 0))
    exchange.enqueue(heldout(1), 0)
    sample(exchange)
    make_pairs(exchange, 5)  # 0 .. 4
    train(exchange, 1)
    exchange.announce(weight_version(1, 1, 1))
    sample(exchange, 1)  # 5
    leased = exchange.lease_sampling("sampler-0", 1)  # 6
    assert leased is not None
    exchange.record_checkpoint(1)
    exchange.fail_sampling(leased, "returned")
    raw = {f"{ordinal}-{index}-v{version}": 80.0 - 25 * index
           for ordinal in (5, 6, 7) for index in range(3) for version in (1, 2)}  # fmt: skip
    score_all(exchange, raw)
    train(exchange, 2)
    exchange.announce(weight_version(2, 2, 2))
    sample(exchange, 2)  # 6 again
    sample(exchange, 2)  # 7
    score_all(exchange, raw)
    train(exchange, 3)
    exchange.check()
    exchange.close()


def destroy(folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"no database at all " * 500)


def recover(folder: Path, config: RunConfig = CONFIG, checkpoints: tuple[int, ...] = (1,), **more: Any) -> Recovered:
    steps: list[int] = []
    done = recovery.recover(folder, config, source, checkpoints, more.get("newest", 2), steps.append)
    assert steps == [done.step]
    return done


def test_recovery_rolls_back_pairs_and_resamples_unfinished_groups(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    destroy(tmp_path)
    with pytest.raises(LedgerDamaged, match=f"restore its last snapshot with: douga recover {tmp_path}"):
        open_exchange(tmp_path, CONFIG)
    done = recover(tmp_path)
    assert (done.step, done.resampled, done.discarded, done.given_up) == (
        1,
        1,
        3,
        0,
    )  # candidate 1 of group 5 was not selected
    assert done.aside == tmp_path / "ledger.sqlite.damaged-1"
    exchange = open_exchange(tmp_path, CONFIG)
    exchange.check()
    counts = exchange.counts()
    assert (counts[State.TRAINED], counts[State.READY], counts[State.PENDING]) == (2, 3, 2)
    assert exchange.wasted() == {"damage": 3}
    assert len(exchange.results(heldout(1)[0].purpose, 0)) == 1  # the evaluation is complete
    exchange.rollback(1)
    again = sample(exchange, 1)
    assert again is not None
    assert (again.prompt.ordinal, again.prompt.image, again.indices) == (5, source(5).image, (0, 1, 2))
    assert train(exchange, 2) == [2, 3]  # their blobs were kept, because checkpoint 1 precedes their step
    exchange.check()
    exchange.close()


def test_clips_deleted_after_the_snapshot_cost_no_pair(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    exchange = open_exchange(tmp_path, CONFIG)
    make_pairs(exchange, SHOWN, 2)  # newer than the groups in the snapshot
    exchange.close()
    destroy(tmp_path)
    assert recover(tmp_path).given_up == 0
    exchange = open_exchange(tmp_path, CONFIG)
    assert exchange.counts()[State.READY] == 3
    exchange.check()
    exchange.close()


def test_candidates_collected_after_the_snapshot_cost_no_pair(tmp_path: Path) -> None:
    """Groups that wait in the snapshot, of which one was then collected."""
    config = small(exchange__max_lag=9, learner__keep_checkpoints=2, sampler__candidates=3, keep_candidates_bytes=1)
    exchange = open_exchange(tmp_path, config)
    exchange.announce(weight_version(0, 0, 0))
    make_pairs(exchange, 5)
    train(exchange, 1)
    exchange.announce(weight_version(1, 1, 1))
    exchange.record_checkpoint(1)
    exchange.drop_collected(3)
    train(exchange, 2)
    exchange.close()
    destroy(tmp_path)
    assert recover(tmp_path, config).given_up == 0
    exchange = open_exchange(tmp_path, config)
    exchange.check()
    assert list(exchange.collected()) == []
    assert (exchange.counts()[State.TRAINED], exchange.counts()[State.READY]) == (2, 3)
    assert train(exchange, 2) == [2, 3]
    exchange.close()


def test_recovery_does_not_reuse_version_ids(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    destroy(tmp_path)
    recover(tmp_path, newest=2)
    exchange = open_exchange(tmp_path, CONFIG)
    assert (exchange.current_version(), exchange.next_version()) == (1, 3)
    exchange.close()


def test_recovery_without_weights_continues_the_snapshots_version_ids(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    destroy(tmp_path)
    recover(tmp_path, newest=-1)
    exchange = open_exchange(tmp_path, CONFIG)
    assert exchange.next_version() == 2
    exchange.close()


def test_a_killed_recovery_can_be_repeated(tmp_path: Path) -> None:
    """At the worst moment: the damaged ledger is renamed, and the repaired one is not in place yet."""
    run_past_checkpoint(tmp_path)
    (tmp_path / "ledger.sqlite").rename(tmp_path / "ledger.sqlite.damaged-1")
    (tmp_path / "recovered.sqlite").write_bytes(b"half")
    (tmp_path / "recovered.sqlite-wal").write_bytes(b"of another copy")
    blobs = set((tmp_path / "blobs").iterdir())
    with pytest.raises(LedgerDamaged, match="missing or empty"):
        open_exchange(tmp_path, CONFIG)
    assert set((tmp_path / "blobs").iterdir()) == blobs  # an empty ledger would have deleted all of them
    assert recover(tmp_path).step == 1
    open_exchange(tmp_path, CONFIG).close()
    assert not list(tmp_path.glob("recovered*"))


def test_pairs_and_evaluations_with_lost_blobs_are_given_up(tmp_path: Path) -> None:
    """A pair with deleted latents, and an evaluation with a damaged blob."""
    run_past_checkpoint(tmp_path)
    exchange = open_exchange(tmp_path, CONFIG)
    sql = "SELECT ordinal, file FROM group_blobs JOIN blobs USING (digest) WHERE name = 'latents/0'"
    files = {row["ordinal"]: row["file"] for row in exchange._ledger.all(sql)}
    exchange.close()
    (tmp_path / "blobs" / files[4]).unlink()
    (tmp_path / "blobs" / files[1 << 40]).write_bytes(b"noise")
    done = recover(tmp_path)
    assert (done.resampled, done.given_up) == (1, 2)
    assert "blob is missing or damaged (2 in all)" in done.damage
    exchange = open_exchange(tmp_path, CONFIG)
    exchange.check()
    assert exchange.counts()[State.EXPIRED] == 1
    exchange.enqueue(heldout(1), 0)
    waiting = exchange.lease_sampling("sampler-0", 0)
    assert waiting is not None
    assert waiting.prompt.id == "held-0"  # queued again
    exchange.close()


def test_recovery_finds_content_that_was_rewritten_after_the_snapshot(tmp_path: Path) -> None:
    """A candidate was discarded after the snapshot, and a sampler with the next version made the same latents."""
    exchange = open_exchange(tmp_path, CONFIG)
    exchange.announce(weight_version(0, 0, 0))
    make_pairs(exchange, 2)
    train(exchange, 1)
    exchange.announce(weight_version(1, 1, 1))
    lease = exchange.lease_sampling("sampler-0", 1)
    assert lease is not None
    exchange.submit_conditioning(lease, conditioning(lease.prompt))
    first = candidate(lease, 0)
    assert exchange.submit_candidate(lease, first).accepted
    exchange.record_checkpoint(1)
    exchange.announce(weight_version(2, 2, 2))
    exchange.fail_sampling(lease, "returned")
    lease = exchange.lease_sampling("sampler-0", 2)  # discards its candidate and the files
    assert lease is not None
    assert lease.indices == (0, 1, 2)
    name = candidate_id(lease.prompt.ordinal, 0, 2)
    assert exchange.submit_candidate(lease, replace(first, id=name, policy_version=2)).accepted
    exchange.close()
    destroy(tmp_path)
    done = recover(tmp_path)
    assert (done.resampled, done.discarded, done.given_up) == (0, 0, 0)
    exchange = open_exchange(tmp_path, CONFIG)
    exchange.check()
    exchange.rollback(1)
    lease = exchange.lease_sampling("sampler-0", 1)
    assert lease is not None
    assert (lease.prompt.ordinal, lease.indices) == (2, (1, 2))
    exchange.close()


def test_a_healthy_ledger_is_left_alone(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    before = (tmp_path / "ledger.sqlite").read_bytes()
    with pytest.raises(ConfigError, match="healthy, nothing to recover"):
        recover(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_another_configuration_is_not_reported_as_damage(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="made with seed = 0, this run has 5"):
        recover(tmp_path, small(seed=5))


@pytest.mark.parametrize("checkpoints", [(), (2, 3)])
def test_recovery_requires_a_snapshot_with_a_checkpoint(tmp_path: Path, checkpoints: tuple[int, ...]) -> None:
    run_past_checkpoint(tmp_path)
    destroy(tmp_path)
    with pytest.raises(ConfigError, match=r"no sound snapshot .* \(snapshots of steps \[1\], checkpoints of steps"):
        recover(tmp_path, checkpoints=checkpoints)
    assert (tmp_path / "ledger.sqlite").exists()


def test_snapshots_are_kept_for_kept_checkpoints(tmp_path: Path) -> None:
    run_past_checkpoint(tmp_path)
    exchange = open_exchange(tmp_path, CONFIG)
    exchange.record_checkpoint(2)
    assert snapshots.steps(tmp_path) == [1, 2]
    exchange.record_checkpoint(3)
    assert snapshots.steps(tmp_path) == [2, 3]
    exchange.rollback(2)
    assert snapshots.steps(tmp_path) == [2]
    exchange.close()
    destroy(tmp_path)
    assert recover(tmp_path, checkpoints=(1, 2)).step == 2
