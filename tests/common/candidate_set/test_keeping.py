"""A run's own candidates: every scored training group once, whole, and never more bytes than allowed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.candidate_set.folder import CandidateSet, SetWriter, read_set, writing_to
from common.candidate_set.keeping import CandidateKeeper
from common.config import RunConfig
from common.exchange.local import LocalExchange
from common.messages import Purpose
from tests.support.candidates import settings
from tests.support.exchange.fakes import (
    array,
    heldout,
    make_pairs,
    open_exchange,
    sample,
    score_all,
    small,
    weight_version,
)

BASE, TRAINED = "ba" * 16, "7a" * 16
LARGE = 10**9


def config(**flags: Any) -> RunConfig:
    return small(keep_candidates_bytes=LARGE, sampler__candidates=3, exchange__max_lag=9, **flags)


@contextmanager
def keeping(run: Path, limit: int = LARGE, said: list[str] | None = None) -> Iterator[tuple[LocalExchange, Any]]:
    """The exchange of a run, and the keeper of its candidates."""
    exchange = open_exchange(run, config())
    try:
        with writing_to(run / "kept", settings()) as writer:
            on_full = [].append if said is None else said.append
            yield exchange, CandidateKeeper(exchange, writer, lambda version, digest: digest or BASE, limit, on_full)
    finally:
        exchange.close()


def announce(exchange: LocalExchange) -> None:
    version = weight_version(1, 1, 1)
    exchange.announce(type(version)(1, 1, 1, "full", 1, (), TRAINED))


def content(found: CandidateSet) -> dict[str, tuple[Any, ...]]:
    return {
        name: (row, found.clip(row), found.latents(row), found.conditioning(row), found.prompt(row))
        for name, row in found.rows.items()
    }


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_every_scored_training_group_is_kept_with_what_became_of_it(tmp_path: Path) -> None:
    with keeping(tmp_path) as (exchange, keeper):
        exchange.keep_empty_prompt(array(b"empty"))
        for _ in range(2):
            sample(exchange)
        scores = {f"{ordinal}-{index}-v0": 50.0 for ordinal in (0, 1) for index in range(3)}
        score_all(exchange, scores | {"0-1-v0": 80.0, "0-2-v0": 30.0})
        keeper.advance()
        announce(exchange)
        exchange.enqueue(heldout(1), 1)
        exchange.enqueue(heldout(1, Purpose.PROBE), 1)
        for _ in range(3):
            sample(exchange, 1)
        score_all(exchange)
        keeper.advance()
        assert list(exchange.collected()) == []
        batch = exchange.lease_batch("learner-0", 1, 2)
    found = read_set(tmp_path / "kept")
    assert list(found.faults()) == []
    assert found.empty_prompt() == array(b"empty")
    rows = list(found.rows.values())
    assert [(row.ordinal, row.index, row.version, row.weights) for row in rows] == [
        *((ordinal, index, 0, BASE) for ordinal in (0, 1) for index in range(3)),
        *((2, index, 1, TRAINED) for index in range(3)),
    ]
    assert [row.selected for row in rows[:6]] == [None, 0, 1, None, None, None]
    assert rows[0].scores["motion"] == 50.0
    assert set(rows[0].scored_by.values()) == {"heads-1"}
    weights = batch[0].selection.weights
    assert [row.weight for row in rows[:3]] == [None, *weights]
    assert [found.latents(row) for row in rows[1:3]] == list(batch[0].latents)
    assert found.conditioning(rows[0]) == batch[0].conditioning


def run(folder: Path, groups: int = 4) -> None:
    """Samples and scores what is missing of `groups` groups, and keeps each after its scores."""
    with keeping(folder) as (exchange, keeper):
        keeper.advance()
        while sum(exchange.counts().values()) < groups:
            make_pairs(exchange, 1)
            keeper.advance()


def test_a_process_killed_at_any_write_keeps_every_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    copies: list[Path] = []

    def copy() -> None:
        copies.append(tmp_path / f"killed-{len(copies):03}")
        shutil.copytree(tmp_path / "run", copies[-1])

    def write(writer: SetWriter, path: Path, data: bytes) -> None:
        copy()
        real_write(writer, path, data)
        copy()

    def add(writer: SetWriter, rows: Any) -> None:
        real_add(writer, list(rows))
        copy()
        copies.append(tmp_path / f"killed-{len(copies):03}")  # in the middle of the second row
        shutil.copytree(tmp_path / "run", copies[-1])
        path = copies[-1] / "kept" / "candidates.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-2]) + lines[-2][:30])

    real_write, real_add = SetWriter._write, SetWriter.add
    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "_write", write)
        patch.setattr(SetWriter, "add", add)
        run(tmp_path / "run")
    expected = content(read_set(tmp_path / "run" / "kept"))
    assert len(expected) == 12
    assert len(copies) > 60
    for one in copies:
        run(one)
        found = read_set(one / "kept")
        assert content(found) == expected, one.name
        assert len((one / "kept" / "candidates.jsonl").read_text().splitlines()) == 12


def test_the_first_groups_are_kept_until_the_set_is_full(tmp_path: Path) -> None:
    said: list[str] = []
    limit = 60_000
    with keeping(tmp_path, limit, said) as (exchange, keeper):
        for count in range(1, 8):
            make_pairs(exchange, 1)
            keeper.advance()
            assert size(tmp_path / "kept") <= limit
            assert len(said) == int(keeper.full)
            if not keeper.full:
                assert len(read_set(tmp_path / "kept").rows) == 3 * count
        assert list(exchange.collected()) == []
    kept = len(read_set(tmp_path / "kept").rows)
    assert 0 < kept < 21
    (line,) = said
    folder = tmp_path / "kept"
    assert line == (
        f"{folder} is full: it keeps the {kept} candidates of the first {kept // 3} groups; "
        f"keep_candidates_bytes = {limit}"
    )
    with keeping(tmp_path, 2 * limit) as (exchange, keeper):  # a larger bound on resume
        make_pairs(exchange, 1)
        keeper.advance()
    ordinals = [row.ordinal for row in read_set(folder).rows.values()]
    assert ordinals == [ordinal for ordinal in (*range(kept // 3), 7) for _ in range(3)]


def test_a_group_that_was_written_before_a_kill_is_not_counted_twice(tmp_path: Path) -> None:
    with keeping(tmp_path) as (exchange, keeper):
        make_pairs(exchange, 2)
        exchange.drop_collected = lambda _: None  # type: ignore[method-assign] - killed before it
        keeper.advance()
    used = read_set(tmp_path / "kept").bytes_on_disk()
    with keeping(tmp_path, used) as (exchange, keeper):
        keeper.advance()
        assert not keeper.full
        assert list(exchange.collected()) == []
