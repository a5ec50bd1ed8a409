"""The in-process exchange: the contract, then what only the ledger on disk has: reopening, blobs, damage."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.config import RunConfig
from common.errors import ConfigError, CorruptDataError, StorageError
from common.exchange import consistency
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.storage.blobs import BlobError, BlobStore, pack, unpack
from common.exchange.storage.group_blobs import SHOWN
from common.exchange.storage.ledger import FIRST_EVALUATION
from common.messages import Purpose, Score, SerializedTensor
from tests.support.exchange import fakes
from tests.support.exchange.contract import ExchangeContract, Factory
from tests.support.exchange.fakes import (
    Clock,
    candidate,
    conditioning,
    heldout,
    make_pairs,
    sample,
    score_all,
    small,
    total,
    train,
    weight_version,
)


class TestLocalExchange(ExchangeContract):
    """`LocalExchange` passes the contract tests."""

    @pytest.fixture
    def open_exchange(self, clock: Clock, tmp_path: Path) -> Iterator[Factory]:
        opened: list[LocalExchange] = []

        def opening(config: RunConfig) -> LocalExchange:
            opened.append(fakes.open_exchange(tmp_path, config, clock))
            return opened[-1]

        yield opening
        for exchange in opened:
            exchange.close()


def reopen(exchange: LocalExchange, folder: Path, config: RunConfig) -> LocalExchange:
    exchange.close()
    return fakes.open_exchange(folder, config)


def files(folder: Path) -> int:
    return len(list((folder / "blobs").iterdir()))


def two_steps(folder: Path, config: RunConfig) -> LocalExchange:
    """Four pairs, two committed steps with a push after each, then two pairs sampled by version 2."""
    exchange = fakes.open_exchange(folder, config)
    make_pairs(exchange, 4)
    for step in (1, 2):
        train(exchange, step)
        exchange.announce(weight_version(step, step, step))
    make_pairs(exchange, 2, version=2)
    return exchange


def test_reopening_releases_all_leases(tmp_path: Path) -> None:
    config = small(exchange__max_lag=3, exchange__max_attempts=1)
    exchange = fakes.open_exchange(tmp_path, config)
    make_pairs(exchange, 2)
    exchange.lease_batch("learner-0", 1, 2)
    for _ in range(2):
        sample(exchange)
    tasks = exchange.lease_candidates("rewarder-0", 3)
    exchange.submit_scores("rewarder-0", [fakes.score(tasks[0], 80.0)])
    lease = exchange.lease_sampling("sampler-0", 0)
    assert lease is not None
    exchange.submit_conditioning(lease, conditioning(lease.prompt))
    exchange.submit_candidate(lease, candidate(lease, 0))

    exchange = reopen(exchange, tmp_path, config)
    counts = exchange.counts()
    assert (counts[State.PENDING], counts[State.SAMPLED], counts[State.READY]) == (1, 2, 2)
    exchange.check()
    again = exchange.lease_sampling("sampler-0", 0)
    assert again is not None
    assert (again.prompt.ordinal, again.indices, again.encoded) == (4, (1,), True)
    assert [task.candidate_id for task in exchange.lease_candidates("rewarder-0", 9)] == ["2-1-v0", "3-0-v0", "3-1-v0"]
    assert exchange.wasted() == {}


def test_rollback_undoes_uses_and_versions(tmp_path: Path) -> None:
    config = small()
    exchange = reopen(two_steps(tmp_path, config), tmp_path, config)
    assert exchange.counts()[State.TRAINED] == 4
    exchange.rollback(1)
    counts = exchange.counts()
    assert (counts[State.TRAINED], counts[State.READY]) == (2, 4)
    assert (exchange.current_version(), exchange.next_version()) == (1, 3)
    exchange.check()
    assert exchange.lease_sampling("sampler-0", 1) is None  # 6 pairs are accepted, the limit is (1 + 1 + 1) * 2 = 6
    assert exchange.lease_sampling("sampler-0", 2) is None
    assert "rolled back" in exchange.refusal
    assert train(exchange, 2) == [2, 3]
    later = exchange.lease_batch("learner-0", 3, 2)
    assert [(pair.policy_version, pair.lag) for pair in later] == [(2, 0), (2, 0)]  # sampled with a rolled-back version


def test_a_repeated_step_repeats_its_batch(tmp_path: Path) -> None:
    """Even if pairs of higher priority were added since: the uninterrupted run did not have them at that step."""
    config = small(exchange__order="priority", exchange__max_lag=3)
    exchange = fakes.open_exchange(tmp_path, config)
    make_pairs(exchange, 2)
    assert train(exchange, 1) == [0, 1]
    for _ in range(2):
        sample(exchange)
    score_all(exchange, {"2-0-v0": 99.0, "2-1-v0": 1.0, "3-0-v0": 99.0, "3-1-v0": 1.0})
    exchange = reopen(exchange, tmp_path, config)
    exchange.rollback(0)
    assert train(exchange, 1) == [0, 1]
    assert train(exchange, 2) == [2, 3]


def test_a_leased_group_carries_its_prompt(tmp_path: Path) -> None:
    """With its first frame: algorithms that follow a reward's gradient compare clips with it."""
    exchange = fakes.open_exchange(tmp_path, small())
    make_pairs(exchange, 2)
    assert [group.prompt for group in exchange.lease_batch("learner-0", 1, 2)] == [fakes.source(0), fakes.source(1)]


def test_rollback_undoes_expiry(tmp_path: Path) -> None:
    config = small()
    exchange = fakes.open_exchange(tmp_path, config)
    make_pairs(exchange, 4)
    train(exchange, 1)
    exchange.announce(weight_version(1, 1, 1))
    make_pairs(exchange, 2, version=1)
    train(exchange, 2, count=1)
    exchange.announce(weight_version(2, 2, 2))
    train(exchange, 3)
    assert exchange.counts()[State.EXPIRED] == 1
    exchange.rollback(2)
    counts = exchange.counts()
    assert (counts[State.EXPIRED], counts[State.READY], counts[State.TRAINED]) == (0, 3, 3)
    exchange.check()


def test_a_pending_group_waits_until_admission_allows_it_again(tmp_path: Path) -> None:
    """A group that was pending at the crash is leased only once the admission rule would admit it again."""
    config = small()
    exchange = two_steps(tmp_path, config)
    lease = exchange.lease_sampling("sampler-0", 2)
    assert lease is not None
    assert lease.prompt.ordinal == 6
    exchange.submit_conditioning(lease, conditioning(lease.prompt))
    exchange.submit_candidate(lease, candidate(lease, 0))
    exchange = reopen(exchange, tmp_path, config)
    exchange.rollback(1)
    assert exchange.lease_sampling("sampler-0", 1) is None
    train(exchange, 2)
    exchange.announce(weight_version(3, 2, 2))
    again = exchange.lease_sampling("sampler-0", 3)
    assert again is not None
    assert (again.prompt.ordinal, again.version, again.indices) == (6, 3, (0, 1))
    assert exchange.wasted() == {"death": 1}


def test_blobs_are_deleted_when_no_state_needs_them(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small(sampler__candidates=4, algorithm__min_gap=0.1))
    sample(exchange)
    assert files(tmp_path) == 1 + 1 + 4 + 4  # image, conditioning, latents, clips
    score_all(exchange, {"0-0-v0": 80.0, "0-1-v0": 30.0, "0-2-v0": 50.0, "0-3-v0": 40.0})
    assert files(tmp_path) == 6  # first frame, conditioning, latents and clips of winner and loser
    sample(exchange)
    score_all(exchange, {f"1-{index}-v0": 50.0 for index in range(4)})  # a tie
    assert files(tmp_path) == 6
    make_pairs(exchange, 1)
    train(exchange, 1)
    assert files(tmp_path) == 12  # a rollback may still need them
    exchange.record_checkpoint(1)
    assert files(tmp_path) == exchange.bytes_on_disk() == 0
    exchange.check()


def test_only_the_newest_pairs_keep_their_clips(tmp_path: Path) -> None:
    config = small(exchange__max_lag=20)
    exchange = fakes.open_exchange(tmp_path, config)
    make_pairs(exchange, SHOWN)
    assert files(tmp_path) == 4 * SHOWN + 2 * 3  # three prompts: equal first frames and conditioning are stored once
    exchange = reopen(exchange, tmp_path, config)
    make_pairs(exchange, 2)
    assert files(tmp_path) == 2 * (SHOWN + 2) + 2 * 3 + 2 * SHOWN
    exchange.check()


def test_blobs_are_kept_for_every_kept_checkpoint(tmp_path: Path) -> None:
    exchange = two_steps(tmp_path, small(learner__keep_checkpoints=2))
    before = files(tmp_path)
    exchange.record_checkpoint(1)
    assert files(tmp_path) == before
    exchange.record_checkpoint(2)  # checkpoints 1 and 2 are kept, so no rollback goes before step 1
    assert files(tmp_path) < before
    exchange.check()
    exchange.rollback(1)
    exchange.check()
    with pytest.raises(ConfigError, match=r"cannot resume from step 0; .* from steps 1 to 1;"):
        exchange.rollback(0)


def test_rollback_beyond_the_last_step_is_rejected(tmp_path: Path) -> None:
    exchange = two_steps(tmp_path, small())
    with pytest.raises(ConfigError, match="cannot resume from step 9"):
        exchange.rollback(9)
    with pytest.raises(ValueError, match="last committed step is 2"):
        exchange.record_checkpoint(3)


def test_shared_images_are_stored_once(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    exchange.enqueue(heldout(5))
    assert files(tmp_path) == 1


def test_max_bytes_blocks_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "array", lambda data: SerializedTensor("uint8", (1, 1, 100_000), data[:1] * 100_000))
    config = small(exchange__max_bytes=1_000_000, exchange__max_lag=20)
    exchange = fakes.open_exchange(tmp_path, config)
    made = 0
    while sample(exchange) is not None:  # about 400 kB while sampled: conditioning 2 x 100 kB, latents 2 x 100 kB
        made += 1
        score_all(exchange, {f"{made - 1}-0-v0": 80.0, f"{made - 1}-1-v0": 30.0})
    assert made >= 2
    assert "max_bytes" in exchange.refusal
    assert exchange.bytes_on_disk() <= 1_000_000
    exchange.enqueue(heldout(1))
    assert sample(exchange) is not None  # max_bytes does not apply to evaluations, which are few
    assert train(exchange, 1) == [0, 1]
    assert sample(exchange) is None
    exchange.record_checkpoint(1)
    assert sample(exchange) is not None


def test_leftover_files_of_a_crash_are_deleted(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    sample(exchange)
    known = files(tmp_path)
    (tmp_path / "blobs" / "0123.tmp").write_bytes(b"half")
    (tmp_path / "blobs" / ("0" * 32)).write_bytes(b"never named")
    reopen(exchange, tmp_path, small()).check()
    assert files(tmp_path) == known


def test_results_of_training_groups_are_rejected(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    with pytest.raises(ValueError, match="only probes and evaluations have results"):
        exchange.results(Purpose.TRAIN, 0)


def test_a_missing_reward_dimension_is_an_error_and_stores_nothing(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    sample(exchange)
    tasks = exchange.lease_candidates("rewarder-0", 2)
    partial = [type(fakes.score(task))(task.candidate_id, "heads-1", {"motion": 1.0}) for task in tasks]
    with pytest.raises(ConfigError, match=r"reward\.weights\.appeal = 1\.0: no reward head scores appeal"):
        exchange.submit_scores("rewarder-0", partial)
    assert all(
        answer.accepted for answer in exchange.submit_scores("rewarder-0", [fakes.score(task) for task in tasks])
    )


def _garbage(folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"this is no database at all" * 100)


def _other_schema(folder: Path) -> None:
    database = sqlite3.connect(folder / "ledger.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()


def _lost_blob(folder: Path) -> None:
    next((folder / "blobs").iterdir()).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_garbage, "damaged .file is not a database."), (_other_schema, "schema 99"), (_lost_blob, "blob is missing")],
)
def test_damage_is_reported_in_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    sample(exchange)
    exchange.close()
    damage(tmp_path)
    with pytest.raises((ConfigError, CorruptDataError), match=message) as caught:
        fakes.open_exchange(tmp_path, small())
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_the_folder_of_another_run_is_rejected(tmp_path: Path) -> None:
    fakes.open_exchange(tmp_path / "run", small()).close()
    with pytest.raises(ConfigError, match="made with seed = 0, this run has 5"):
        fakes.open_exchange(tmp_path / "run", small(seed=5))
    (tmp_path / "file").write_text("here")
    with pytest.raises(ConfigError, match="cannot be a run folder"):
        fakes.open_exchange(tmp_path / "file", small())


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    program = (
        "import sys; from pathlib import Path; from tests.support.exchange import fakes\n"
        "from common.errors import ConfigError\n"
        "try: fakes.open_exchange(Path(sys.argv[1]), fakes.small())\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()}; wait for it or choose another --name" in done.stdout
    exchange.check()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM groups WHERE ordinal = 4", "6 groups were admitted, the states sum to 5"),
        ("UPDATE groups SET times_trained = 1 WHERE ordinal = 4", "group 4 .ready.: trained 1 times, but in 0"),
        ("UPDATE groups SET state = 'trained' WHERE ordinal = 4", "no step used it"),
        ("DELETE FROM group_blobs WHERE ordinal = 4 AND name = 'latents/0'", "no group needs it"),
        ("UPDATE blobs SET size = size + 1", "in the ledger"),
        ("DELETE FROM candidates WHERE id = '4-0-v2'", "group 4 is ready with 1 candidates"),
        (
            "UPDATE batch_entries SET committed = 0 WHERE step = 2 AND slot = 0",
            "group 2 .trained.: trained 1 times, but",
        ),
    ],
)
def test_check_finds_violated_invariants(tmp_path: Path, sql: str, message: str) -> None:
    exchange = two_steps(tmp_path, small())
    exchange.check()
    exchange.close()
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    with database:
        database.execute(sql)
    database.close()
    with pytest.raises(consistency.LedgerInvariantError, match=message):
        fakes.open_exchange(tmp_path, small()).check()


def test_blobs_round_trip_and_are_verified(tmp_path: Path) -> None:
    arrays = [SerializedTensor("float32", (2, 1), b"12345678"), None, SerializedTensor("uint8", (0,), b"")]
    assert unpack(pack(arrays)) == arrays
    for broken in (b"", b"\xff\xff\xff\xff", pack(arrays)[:-1], pack(arrays) + b"x"):
        with pytest.raises((BlobError, ValueError)):
            unpack(broken)
    store = BlobStore(tmp_path / "blobs")
    with store.staging(arrays, arrays, arrays[:1]) as (first, again, other):
        assert first.digest == again.digest != other.digest
        assert first.file != again.file
        first.taken = True
    assert [path.name for path in store.folder.iterdir()] == [first.file]
    assert store.open(first.file).read() == arrays
    opened, damaged = store.open(first.file), store.open(first.file)
    (store.folder / first.file).write_bytes(b"c0ntent")
    with pytest.raises(StorageError, match=f"content differs from its name; .*: douga recover {tmp_path}"):
        damaged.read()
    (store.folder / first.file).write_bytes(pack(arrays))
    store.delete(first.file)
    assert opened.read() == arrays
    with pytest.raises(StorageError, match="blob cannot be read: No such file"):
        store.open(first.file)


def test_blob_names_are_not_interned(tmp_path: Path) -> None:
    """`sys.intern` returns the interned string if there is one. `pathlib` interns the parts of its paths."""
    store = BlobStore(tmp_path / "blobs")
    staged = store.write([SerializedTensor("uint8", (1,), b"x")])
    opened = store.open(staged.file)
    name = "".join(list(staged.file))
    assert sys.intern(name) is name
    del name
    path = tmp_path / staged.file
    name = "".join(list(staged.file))
    assert sys.intern(name) is path.parts[-1] is not name
    assert opened.read() == [SerializedTensor("uint8", (1,), b"x")]


def test_a_copy_of_an_open_ledger_can_be_opened(tmp_path: Path) -> None:
    """SIGKILL leaves the same files: the database with an open write-ahead log."""
    exchange = two_steps(tmp_path / "run", small())
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copy = fakes.open_exchange(tmp_path / "copy", small())
    assert copy.counts() == exchange.counts()
    assert total(copy.counts()) == 6
    copy.check()


def test_what_has_no_score_is_named_with_its_last_reason(tmp_path: Path) -> None:
    exchange = fakes.open_exchange(tmp_path, small())
    exchange.enqueue(heldout(2), version=0)
    for _ in range(2):
        sample(exchange)
    broken, fine = (
        Score(f"{FIRST_EVALUATION + i}-0-v0", "r", {"motion": v}) for i, v in enumerate((float("nan"), 5.0))
    )
    exchange.submit_scores("rewarder", [broken, fine])
    assert exchange.unscored(Purpose.EVAL, 0) == {(0, "held-0"): "nan score: motion"}
    assert exchange.unscored(Purpose.EVAL, 1) == exchange.unscored(Purpose.PROBE, 0) == {}
    exchange.enqueue(heldout(2), version=0)  # tried again
    sample(exchange)
    exchange.submit_scores("rewarder", [Score(f"{FIRST_EVALUATION + 2}-0-v0", "r", {"motion": 7.0})])
    assert exchange.unscored(Purpose.EVAL, 0) == {}
