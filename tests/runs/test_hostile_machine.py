"""A whole cluster run on a machine where nothing is as expected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.run_dir import layout

NO_ACCOUNT = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]  # a user id without a passwd entry
SHELL = ["sh", "-c", 'umask 077; ulimit -Sn 128; exec "$@"', "sh"]


def without_account() -> list[str]:
    """The words before a command that run it without an account; none if this machine does not allow that."""
    if shutil.which(NO_ACCOUNT[0]) is None:
        return []
    allowed = subprocess.run([*NO_ACCOUNT, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0
    return NO_ACCOUNT if allowed else []


@pytest.mark.timeout(240)
def test_a_cluster_run_with_a_hostile_environment(tmp_path: Path) -> None:
    """A long TMPDIR, no HOME, no account, the C locale, few open files, umask 077, and odd letters in all paths."""
    checkout = tmp_path / "my chéckout"
    checkout.symlink_to(Path.cwd())
    root = tmp_path / "läufe von mir" / "動画"
    kept = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("RAY_")}
    environment = kept | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "USER": "", "LOGNAME": ""}
    with tempfile.TemporaryDirectory(prefix="x" * 100) as long_folder:
        environment["TMPDIR"] = long_folder
        flags = {"mode": "cluster", "root": str(root), "name": "hostile", "steps": "1"}
        flags |= {f"simulation.{role}-seconds": "0.01" for role in ("sample", "score", "step", "load")}
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        command = [*without_account(), *SHELL, sys.executable, "-m", "deploy.cli", "run", "--simulate", *words]
        ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    result = layout.read_result(root / "hostile")
    assert result is not None
    assert result["step"] == 1
    assert (root / "hostile").stat().st_mode & 0o077 == 0
