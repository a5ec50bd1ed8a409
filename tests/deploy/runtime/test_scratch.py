"""Scratch folders are removed when their process ends, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.runtime.workers.scratch import PREFIX, scratch

OWNER = """
import sys
from deploy.runtime.workers.scratch import scratch
with scratch("sampler-0") as folder:
    (folder / "weights").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_exists_only_inside_the_block(place: Path) -> None:
    with scratch("sampler-0") as mine, scratch("sampler-0") as other:
        assert mine != other
        assert mine.is_dir()
        assert other.is_dir()
    assert list(place.iterdir()) == []


def test_folders_of_killed_processes_are_removed(place: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(place)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], env=environment, **pipes)
    try:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        (place / "douga-runs").mkdir()
        (place / f"{PREFIX}file").write_text("somebody's")
        (place / f"{PREFIX}link").symlink_to(place / "douga-runs")
        with scratch("sampler-1"):
            assert (left / "weights").exists()  # its process is alive
        owner.send_signal(signal.SIGKILL)
        owner.wait(30)
        with scratch("sampler-1"):
            assert not left.exists()
        assert sorted(path.name for path in place.iterdir()) == ["douga-runs", f"{PREFIX}file", f"{PREFIX}link"]
    finally:
        owner.kill()
        owner.communicate()
