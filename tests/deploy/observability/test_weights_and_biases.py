"""Weights & Biases, the real package in offline mode: the content of its files, and that its errors never end a run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from deploy.observability import weights_and_biases
from deploy.observability.weights_and_biases import check_wandb
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime.run_metrics import RunMetrics, of_step
from tests.deploy.runtime.test_run_metrics import START, reading
from tests.runs.test_bare import run as run_without
from tests.runs.test_simulate import config
from tests.support import toy
from tests.support.steps import STATS

installed = pytest.mark.skipif(
    find_spec("wandb") is None, reason="wandb is not installed in this environment: pip install 'douga[wandb]'"
)
# The run is a separate process, because W&B starts a helper process and installs hooks.
RUN = """if True:
    import sys
    from pathlib import Path
    from deploy.runtime import serial
    from tests.runs.test_simulate import config
    from tests.support import toy
    made = config(Path(sys.argv[1]), **{"metrics.wandb": "cartoons"})
    stop = toy.after(int(sys.argv[2]), lambda: True)
    print(serial.run(made, stop=stop).finished)
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # not the login of the user who runs the tests
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def started(root: Path, calls: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root), str(calls)], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK, HEAD, FULL, LAST = 1 << 15, 7, 1, 4  # of LevelDB's log format, in which W&B keeps an offline run


def records(file: Path) -> list[Any]:
    """Reads the records of one start. The package has no reader for its format."""
    proto, data = import_module("wandb.proto.wandb_internal_pb2"), file.read_bytes()
    assert data.startswith(b":W&B")
    found, place, whole = [], HEAD, b""
    while place + HEAD < len(data):
        if BLOCK - place % BLOCK < HEAD:  # the rest of a block is too short for a record's header
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + HEAD : place + HEAD + size]
        place += HEAD + size
        if kind in (FULL, LAST):
            found.append(proto.Record.FromString(whole))
            whole = b""
    return found


def history(kept: list[Any]) -> list[dict[str, float]]:
    rows = [record.history.item for record in kept if record.WhichOneof("record_type") == "history"]
    found = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in found]


@installed
@pytest.mark.timeout(290)
def test_a_resumed_run_continues_the_same_run_with_the_gauges_of_every_step(tmp_path: Path) -> None:
    assert started(tmp_path, 20) == "False\n"
    assert started(tmp_path, 10_000) == "True\n"
    folder = tmp_path / "runs" / "simulated"
    kept = [records(file) for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
    runs = [record.run for start in kept for record in start if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        ((folder / "wandb" / "id").read_text(), "cartoons", "simulated")
    }
    assert len(kept) == 2
    steps, rows = read_json_lines(folder / "metrics.jsonl"), [row for start in kept for row in history(start)]
    assert [row["step"] for row in rows] == [record["step"] for record in steps]
    margins = [record["metrics"]["reward_margin"] for record in steps]
    assert [row["douga_algorithm_reward_margin"] for row in rows] == pytest.approx(margins)
    assert rows[0].keys() == {"step"} | {value.name for value in of_step(STATS)}


@installed
def test_readings_have_the_names_that_tensorboard_shows(tmp_path: Path) -> None:
    run_metrics = RunMetrics(config(tmp_path, **{"metrics.wandb": "cartoons"}), tmp_path)
    run_metrics.step(replace(STATS, step=4))
    run_metrics.reading([START, reading(4)])
    run_metrics._close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    toy.wait_until(lambda: bool(history(records(file))))  # its own process writes the file
    assert history(records(file))[-1]["douga_probe_reward/reward/policy"] == 53.0


@installed
def test_a_missing_login_is_an_error_that_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from deploy.cli.main import main; sys.exit(main(sys.argv[1:]))"
    monkeypatch.setenv("WANDB_MODE", "online")
    words = ["run", "--simulate", "--mode", "serial", "--metrics.wandb", "cartoons", "--root", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 2
    assert "douga: metrics.wandb: no login for W&B here: run `wandb login`, or set WANDB_MODE=offline\n" in done.stderr
    assert not (tmp_path / "runs").exists()


@installed
def test_a_server_that_cannot_be_reached_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(weights_and_biases, "INIT_SECONDS", 1.0)
    import_module("wandb").teardown()  # the package reads the environment once
    run_metrics = RunMetrics(config(tmp_path, **{"metrics.wandb": "cartoons"}), tmp_path)
    run_metrics.step(STATS)
    run_metrics._close()
    assert [one.getMessage() for one in caplog.records if "the run continues without W&B" in one.getMessage()]


def test_wandb_is_imported_only_if_configured() -> None:
    code = "import sys, deploy.runtime.run_metrics; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    words = ("--mode", "serial", "--simulate", "--metrics.wandb", "cartoons")
    ended = run_without(tmp_path, "wandb", *words)
    assert (ended.returncode, ended.stderr) == (
        2, "douga: metrics.wandb: needs the package wandb: pip install 'douga[wandb]'\n"
    )  # fmt: skip


def test_offline_needs_no_login(tmp_path: Path) -> None:
    if find_spec("wandb") is None:
        with pytest.raises(ConfigError, match="needs the package wandb"):
            check_wandb(config(tmp_path, **{"metrics.wandb": "cartoons"}))
    else:
        check_wandb(config(tmp_path, **{"metrics.wandb": "cartoons"}))
    check_wandb(config(tmp_path))
