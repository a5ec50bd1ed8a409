"""The free space is compared with the plan before a run begins."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.errors.disk import amount
from deploy.planning.free_space import PARTS, check_space
from deploy.runtime import serial
from tests.support import toy
from tests.support.tiny import tiny_pipeline

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - size, size))


def told(config) -> list[str]:
    lines: list[str] = []
    check_space(config, lines.append)
    return lines


def test_a_disk_without_room_for_one_version(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run folder is made."""
    config = toy.config(tmp_path, **{"model.path": model})
    free(monkeypatch, 50_000)
    with pytest.raises(ConfigError, match=r"toy: 50 KB are free there, and one weight version takes \d+ KB"):
        serial.run(config, toy.rewards())
    assert not config.folder.exists()


def test_a_disk_with_too_little_room_is_said_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy.config(tmp_path, **{"model.path": model})
    free(monkeypatch, 500_000)
    (line,) = told(config)
    assert re.match(rf"{config.folder}: 500 KB are free there; the run will need [\d.]+ MB \(blobs, ", line)
    free(monkeypatch, 10**9)
    assert told(config) == []


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_need_is_what_a_run_comes_to_hold(
    train: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a quarter. A run that resumes does not need again what it has stored."""
    config = toy.config(tmp_path, **{"model.path": model, "learner.train": train})
    free(monkeypatch, 200_000)
    needed = _amount(told(config)[0])
    free(monkeypatch, 10**9)
    assert serial.run(config, toy.rewards()).finished
    held = sum(file.stat().st_size for part in PARTS for file in (config.folder / part).rglob("*") if file.is_file())
    assert held == pytest.approx(needed, rel=0.25)
    free(monkeypatch, 100)  # not refused: the base model is there
    assert all(_amount(line) < 0.25 * needed for line in told(config))


def _amount(line: str) -> float:
    found = re.search(r"will need ([\d.]+) ([KM])B", line)
    assert found is not None
    return float(found[1]) * {"K": 1e3, "M": 1e6}[found[2]]


def test_simulated_runs_need_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 0)
    assert told(toy.config(tmp_path, simulate=True)) == []


@pytest.mark.parametrize(("size", "text"), [(0, "0 KB"), (4096, "4 KB"), (350e6, "350.0 MB"), (11.21e9, "11.21 GB")])
def test_amounts(size: float, text: str) -> None:
    assert amount(size) == text
