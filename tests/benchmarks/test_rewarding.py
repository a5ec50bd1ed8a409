"""The rewarding benchmark: every row is there, and the chunk size is as it was."""

from __future__ import annotations

import argparse

from benchmarks import rewarding
from rewarders.toon_heads import heads


def test_rows_and_aim():
    chunk = heads.CHUNK
    given = argparse.Namespace(clips=5, batch=4, rounds=1, device="cpu", threads=1)
    report = rewarding.measure(given)
    assert chunk == heads.CHUNK
    assert len(report.rows) == 4
    assert all(row.ours > 0 for row in report.rows)
    gain = report.rows[0].ratio
    assert gain is not None
    assert (report.aims[0].value, report.aims[0].met) == (gain.median, gain.median >= 3)
