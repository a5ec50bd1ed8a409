"""The lock of a run: one holder at a time, even within one process; a query does not take it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.exchange.storage.run_lock import LOCK, hold, lock_owner


def test_a_second_handle_is_refused_even_in_the_same_process(tmp_path: Path) -> None:
    with hold(tmp_path):
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}; wait for it"):
            hold(tmp_path)
        assert lock_owner(tmp_path) == os.getpid()
    hold(tmp_path).close()


def test_closing_another_handle_does_not_release_it(tmp_path: Path) -> None:
    with hold(tmp_path):
        (tmp_path / LOCK).open("rb").close()
        assert lock_owner(tmp_path) == os.getpid()
    assert lock_owner(tmp_path) is None


def test_a_folder_without_a_run_has_no_owner(tmp_path: Path) -> None:
    assert lock_owner(tmp_path / "none") is None
    (tmp_path / "file").write_text("here")
    with pytest.raises(ConfigError, match="cannot be a run folder"):
        hold(tmp_path / "file")


def test_a_full_disk_is_one_line_and_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from common.errors import StorageError\n"
        "from common.exchange.storage.run_lock import hold\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try: hold(Path(sys.argv[1]))\n"
        "except StorageError as error: sys.stderr.write(str(error))\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(words, stderr=subprocess.PIPE, check=True, text=True, timeout=60)
    line = f"{tmp_path}/ledger.lock: cannot be written: File too large; free some space, then rerun the same command"
    assert ended.stderr == f"{line} to resume"
    hold(tmp_path).close()
