"""The fleet benchmark with two nodes of two samplers, on threads: all rows of its report, and what the hub sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from threading import Thread
from typing import Any

import pytest

from benchmarks.harness import as_json
from benchmarks.weights import fleet


@contextmanager
def threads(count: int) -> Iterator[list[Any]]:
    """In the place of `fleet.nodes`."""
    ends = [Pipe() for _ in range(count)]
    working = [Thread(target=fleet._node, args=(theirs,), daemon=True) for _, theirs in ends]
    for thread in working:
        thread.start()
    yield [mine for mine, _ in ends]
    for (mine, _), thread in zip(ends, working, strict=True):
        mine.send(None)
        thread.join(20)
        assert not thread.is_alive()


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "nodes", threads)
    monkeypatch.setattr("common.weights.pull.LEAST_DELTA", 0)
    found = as_json(fleet.measure([1e9], size=200_000, rounds=1, fleet=(2, 2)))
    sent = {row["case"].split(": ")[1]: row["ours"] for row in found["rows"] if row["unit"] == "versions"}
    assert (sent["whole"], sent["whole, by node"]) == pytest.approx((4, 2))
    assert sent["delta"] == pytest.approx(2 * sent["delta, by node"])
    assert sent["delta"] < 4 / 8
    seconds = [row for row in found["rows"] if row["unit"] == "s"]
    assert [row["other"] is None for row in seconds] == [True, False, False, False]
    assert all(row["ours"] >= 0.9 * row["limit"] for row in seconds)
    assert [aim["target"] for aim in found["aims"]] == [">= 10", ">= 50", ">= 20"]


def test_a_node_that_dies_is_an_error() -> None:
    mine, theirs = Pipe()
    theirs.close()
    with pytest.raises(EOFError):
        fleet.answers([mine], "ready")
