"""The heads' benchmark on a few clips: every row and aim is there."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from benchmarks import heads
from benchmarks.report import as_json
from common.config import DIMENSIONS


def test_rows_and_aims() -> None:
    report = heads.measure(Namespace(rendered=24, sampled=6))
    assert len(report.rows) == 3 * len(DIMENSIONS)
    assert all(-1 <= row.ours <= 1 and row.other is not None and 0 <= row.other <= 1 for row in report.rows)
    # The embedded heads on clips with defects: no luck on 24 clips brings 0.5 on average.
    assert np.mean([row.ours for row in report.rows[:6]]) > 0.5
    rendered, policy, deaf = report.aims
    assert rendered.value == min(row.ours for row in report.rows[:6])
    assert policy.met == (min(row.ours for row in report.rows[6:12]) >= 0.6)
    assert deaf.value == min(row.ours for row in report.rows[12:])
    assert as_json(report)["name"] == "heads"
