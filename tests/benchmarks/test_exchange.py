"""The exchange's benchmark on bytes and fractions of a second: every part runs, nothing stays on the disk."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.exchange import LEASES, Window, duties, measure, ours
from benchmarks.exchange_clients import GROUP, Sizes
from benchmarks.harness import as_json

SIZES = Sizes(candidate=20_000, conditioning=1_000, image=500)


def test_all_parts_run_and_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # somebody else's Ray: not what is measured
    report = measure(Namespace(clients=[2], rounds=1, root=tmp_path), SIZES, Window(0.5, 3.0, 0.2))
    rows = {row.case.removeprefix("2 clients: "): row for row in report.rows}
    candidates = rows["candidates durable; Ray's queue is not durable"]
    assert candidates.ours > 0
    assert candidates.other is not None
    assert candidates.other > 0
    assert candidates.ratio is not None
    assert candidates.ratio.median == candidates.ours / candidates.other
    least = min(row.ours for case, row in rows.items() if case.startswith("limit, "))
    assert rows["bytes durable, ratio to the limit"].limit == least > 0
    assert rows["2 clients alone, against a service that keeps nothing"].ours > 0
    assert [aim.target for aim in report.aims] == ["at least 5", "at least 0.5"]
    assert as_json(report)["name"] == "exchange"
    assert list(tmp_path.iterdir()) == []


def test_clients_lease_submit_score_and_train(tmp_path: Path) -> None:
    """All counted calls were answered by an exchange that is audited at the end."""
    seen = ours(4, SIZES, Window(0.5, 2.0, 0.0), tmp_path)
    assert all(seen.values[name] for name in LEASES)
    groups = len(seen.values["group"])
    assert groups > 0
    per_group = GROUP * SIZES.candidate + SIZES.conditioning
    assert abs(sum(seen.values["bytes"]) / per_group - groups) < 4  # of groups begun before or ended after the window
    assert seen.service_cpu > 0
    assert list(tmp_path.iterdir()) == []


def test_every_client_has_a_duty() -> None:
    assert list(duties(1).values()) == ["srl"]
    for clients in (2, 8, 64):
        assert len(duties(clients)) == clients
        kinds = "".join(duties(clients).values())
        assert kinds.count("l") == 1
        assert kinds.count("s") >= clients // 2 - 1
