"""`douga logs` as a command: its output, --follow and its errors."""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import load_config
from common.messages import LogEntry
from deploy.cli.main import main
from deploy.logs.files import LogFiles
from tests.support.web_runs import begun

COMMAND = (sys.executable, "-m", "deploy.cli", "logs")


def write(folder: Path, process: str, message: str, level: int = logging.INFO) -> None:
    LogFiles(folder, load_config()).write(process, [LogEntry(1_700_000_000.0, level, "x", message)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder, _ = begun(tmp_path)
    write(folder, "serial", "one")
    write(folder, "serial", "two", logging.ERROR)
    return folder


def test_records_are_printed_plain_into_a_pipe(run: Path, capsys) -> None:
    assert main(["logs", str(run)]) == 0
    assert capsys.readouterr().out == (
        "2023-11-14T22:13:20.000Z INFO serial x: one\n2023-11-14T22:13:20.000Z ERROR serial x: two\n"
    )
    assert main(["logs", str(run), "--level", "warning", "--lines", "5", "--role=serial"]) == 0
    assert capsys.readouterr().out == "2023-11-14T22:13:20.000Z ERROR serial x: two\n"


def test_a_terminal_gets_colours(run: Path) -> None:
    mine, its = pty.openpty()
    try:
        subprocess.run([*COMMAND, str(run)], stdout=its, timeout=120, check=True)
        shown = os.read(mine, 10_000).decode()
    finally:
        os.close(mine)
        os.close(its)
    assert "INFO serial x: one\r\n" in shown
    assert "\x1b[31m2023-11-14T22:13:20.000Z ERROR serial x: two\x1b[0m\r\n" in shown


def test_follow_prints_new_records_until_interrupted(run: Path) -> None:
    heard = ["env", "--default-signal=INT"]  # processes in a shell's background ignore it
    with subprocess.Popen(
        [*heard, *COMMAND, str(run), "--follow", "--lines", "1"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().endswith("two\n")
            write(run, "serial", "three")
            assert process.stdout.readline().endswith("serial x: three\n")
            write(run, "hub", "a new file")
            assert process.stdout.readline().endswith("hub x: a new file\n")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_closed_pipe_ends_the_command(run: Path) -> None:
    for number in range(100):
        write(run, "serial", f"{number}" + "." * 2000)
    command = f"{' '.join(COMMAND)} {run} --lines 0 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_the_command_needs_no_torch() -> None:
    code = "import sys; import deploy.inspect.logs, deploy.cli.logs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no run folder"),
        (["{run}", "--role", "learners"], "--role learners: unknown role; allowed: driver, hub, learner, "),
        (["{run}", "--role", "learner"], "--role learner: no such log in {run}; there are serial"),
        (["{run}", "--worker", "sampler-3"], "--worker sampler-3: no such log in {run}; there are serial"),
        (["{run}", "--level", "loud"], "--level loud: unknown level; allowed: debug, "),
        (["{run}", "--since", "soon"], "--since soon: must be like 30s, 10m, "),
        (["{run}", "--lines", "-1"], "--lines -1: must be 0 or more"),
        (["{run}", "--colour", "red"], "--colour: unknown option"),
    ],
)
def test_bad_input_is_one_line(run: Path, capsys, words: list[str], said: str) -> None:
    assert main(["logs", *(word.format(run=run) for word in words)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"douga: {said.format(run=run)}")
    assert told.count("\n") == 1


def test_a_run_without_logs_is_an_error(tmp_path: Path, capsys) -> None:
    folder, _ = begun(tmp_path)
    assert main(["logs", str(folder)]) == 2
    assert capsys.readouterr().err == f"douga: {folder}: no logs yet; --follow waits for them\n"
