"""Runs that are killed again and again lose nothing (`benchmarks/stress/chaos.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.stress import chaos


@pytest.mark.timeout(900)
def test_simulated_work_outlives_twenty_five_kills(tmp_path: Path) -> None:
    assert "none lost" in chaos.run_chaos(tmp_path, kills=25, real=False, seed=0, say=print)


@pytest.mark.timeout(900)
def test_the_embedded_model_outlives_five_kills(tmp_path: Path) -> None:
    assert "bit for bit" in chaos.run_chaos(tmp_path, kills=5, real=True, seed=1, say=print)
