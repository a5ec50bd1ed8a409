"""The embedded default end to end, in small: real weights, real heads, bit-identical results after crashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.prompts.source import open_prompts
from common.config import RunConfig
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.messages import Purpose
from deploy.results import report
from deploy.runtime import serial
from tests.support import toy

pytestmark = pytest.mark.timeout(600)


def finish(config: RunConfig) -> dict[str, Any]:
    result = serial.run(config).result
    assert result is not None
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """A run from start to end and its result."""
    config = toy.embedded(tmp_path_factory.mktemp("whole"))
    return config, finish(config)


def test_all_heads_and_oracle_figures_are_in_the_result(whole: tuple[RunConfig, dict[str, Any]]) -> None:
    config, result = whole
    learned = {"reward", "smoothness", "motion", "appeal", "text", "image", "character"}
    assert set(result["learned"]) == learned
    assert set(result["oracle"]) == {"identity", "motion", "smoothness"}
    assert all(0 < result["learned"][name]["base"]["mean"] < 100 for name in learned)
    assert any(record["base"] != record["aligned"] for record in result["by_prompt"])
    assert "Oracle" in report.write(config.folder).read_text()


@pytest.mark.slow  # `test_serial.py` tests this with a small model
def test_the_same_seed_gives_the_same_weights(whole: tuple[RunConfig, dict[str, Any]], tmp_path: Path) -> None:
    assert finish(toy.embedded(tmp_path)) == whole[1]


@pytest.mark.slow  # `tests/benchmarks/stress/test_chaos.py` kills the same roles in the default test run
def test_a_killed_run_resumes_to_the_same_weights(whole: tuple[RunConfig, dict[str, Any]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.toy", str(tmp_path), "24", "embedded"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr.decode()[-500:]
    config = toy.embedded(tmp_path)
    result = finish(config)
    for name in ("weights_digest", "by_prompt", "learned", "oracle"):
        assert result[name] == whole[1][name]
    exchange = LocalExchange(config.folder, config, open_prompts(config.prompts, config.seed))
    exchange.check()  # every group is in one state, every pair trained once
    assert exchange.counts()[State.TRAINED] == 6
    assert exchange.counts(Purpose.EVAL)[State.DONE] == 8
    exchange.close()
