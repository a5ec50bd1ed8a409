"""``ray job submit`` as a user types it, on a separate Ray, with and without its token."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.run_dir import layout
from deploy.run_dir.jsonl import read_json_lines
from learner import checkpoint
from tests.support.toy import wait_until

pytestmark = pytest.mark.timeout(300)
BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[3]
SMALL = {
    "steps": 2,
    "learner.batch_size": 2,
    "evaluation.prompts": 2,
    "evaluation.clips": 1,
    "cluster.sampler.count": 1,
}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def head(environment: dict[str, str], scratch: Path, *more: str) -> Iterator[str]:
    """Starts a separate head node; yields the dashboard's address. Only its own processes are stopped.

    `more` are arguments of ``ray start``.
    """
    port, dashboard, client, agent = free_ports(4)
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "node-ip-address": "127.0.0.1",
        "temp-dir": scratch,
        "object-store-memory": 100_000_000,
        "num-cpus": 2,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with (scratch.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", *words, *more],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(dashboard), 90)
        assert process.poll() is None, scratch.with_suffix(".log").read_text()[-1000:]
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it requires a token
    except OSError:
        return False
    return True


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short path, because Ray puts sockets there, whose paths have a maximum length."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder) / "r"


def clean_environment(home: Path) -> dict[str, str]:
    """Removes the variables of an outer Ray and the user's token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return environment | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home), "RAY_AUTH_MODE": "disabled"}


@pytest.mark.slow
def test_a_stopped_job_saves_and_the_next_one_resumes(scratch: Path, tmp_path: Path) -> None:
    """As on Kubernetes: installed code, nodes chosen by resources, time to save, resume by name."""
    environment = clean_environment(tmp_path) | {"RAY_JOB_STOP_WAIT_TIME_S": "120", "PYTHONPATH": str(REPOSITORY)}
    pinned = [f"--cluster.{role}.node={role}" for role in ("learner", "sampler", "rewarder")]
    flags = ["--simulate", "--steps=60", "--learner.batch-size=2", "--simulation.step-seconds=1", *pinned]
    run = [sys.executable, "-m", "deploy.cli", "run", "--mode=cluster", f"--root={tmp_path / 'runs'}", *flags]
    folder = tmp_path / "runs" / "toon"
    with head(environment, scratch, '--resources={"learner": 1, "sampler": 1, "rewarder": 1}') as address:

        def job(*words: str | Path) -> str:
            command = [BIN / "ray", "job", words[0], "--address", address, *words[1:]]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
            )
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
            return done.stdout

        job("submit", "--no-wait", "--submission-id", "first", "--", *run)
        wait_until(lambda: len(read_json_lines(folder / "metrics.jsonl")) >= 3, 120)
        job("stop", "first")
        stopped = max(checkpoint.steps(folder / "checkpoints"))  # of the step at which it stopped
        assert 3 <= stopped < 60
        assert f"stopped after step {stopped} of 60" in job("logs", "first")
        job("submit", "--", *run, "--steps", str(stopped + 2))
    steps = [line["step"] for line in read_json_lines(folder / "metrics.jsonl")]
    assert steps == list(range(1, stopped + 3))  # no step is repeated


@pytest.mark.parametrize("token", [pytest.param(False, marks=pytest.mark.slow), True], ids=["open", "token"])
def test_a_job_runs_to_its_end(token: bool, scratch: Path, tmp_path: Path) -> None:
    environment = clean_environment(tmp_path)
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    with head(environment, scratch) as address:
        submit = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--"]
        run = ["python", "-m", "deploy.cli", "run", "--mode", "cluster", "--root", tmp_path / "runs", *flags]
        done = subprocess.run(
            [*submit, *run], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        if token:
            stranger = environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            refused = subprocess.run([*submit, "true"], cwd=tmp_path, env=stranger, capture_output=True, check=False)
            assert refused.returncode != 0
    result = layout.read_result(tmp_path / "runs" / "toon")
    assert result is not None
    assert result["step"] == 2
    assert "held-out prompts" in done.stdout
    assert len(read_json_lines(tmp_path / "runs" / "toon" / "metrics.jsonl")) == 2


def test_a_python_without_the_packages_is_reported() -> None:
    """A bare `python` in a job is the one on the PATH that Ray was started with."""
    bare = subprocess.run(
        [sys.executable, "-S", "-m", "deploy.cli", "run"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert bare.returncode == 2
    assert bare.stderr.count("\n") == 1
    assert f"{sys.executable} has no pydantic" in bare.stderr
    assert ".venv/bin/python" in bare.stderr
