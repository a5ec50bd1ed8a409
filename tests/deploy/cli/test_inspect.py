"""`douga status`, `trace` and `watch` as commands: their output and their errors."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deploy.cli.main import main
from tests.support.exchange.fakes import make_pairs, open_exchange
from tests.support.web_runs import begun, history


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed after three pairs and two steps."""
    folder, config = begun(tmp_path)
    exchange = open_exchange(folder, config)
    make_pairs(exchange, 3)
    exchange.close()
    history(folder, 1_700_000_000.0)
    return folder


def test_status_of_a_killed_run(run: Path, capsys) -> None:
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mine: not running\nended without recording why: killed by SIGKILL")
    assert f"; resume with: douga run {run / 'config.toml'}\n" in said
    assert "groups   3 ready\n" in said
    assert main(["status", str(run), "--json", "--follow"]) == 0  # returns, because the run is not running
    told = json.loads(capsys.readouterr().out)
    assert (told["phase"], told["step"], told["queue"], told["resume_command"]) == (
        "not running", 0, {"ready": 3}, f"douga run {run / 'config.toml'}"
    )  # fmt: skip


def test_a_trace_is_written_to_the_run_folder_or_to_out(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["trace", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run / 'trace.json'}: 4 units of work; ")
    kinds = {one["ph"] for one in json.loads((run / "trace.json").read_text())["traceEvents"]}
    assert kinds == {"M", "X", "i", "C"}
    assert main(["trace", str(run), "--out", str(tmp_path / "other.json")]) == 0
    assert (tmp_path / "other.json").read_bytes() == (run / "trace.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "nowhere"], "nowhere: no run folder"),
        (["trace", "nowhere"], "nowhere: no run folder"),
        (["watch", "nowhere"], "nowhere: no run folder"),
        (["watch", "{run}", "--host", "10.0.0.5"], "off loopback a token is needed"),
        (["watch", "{run}", "--token", "short"], "5 characters are too few; 16 or more"),
        (["trace", "{run}", "--out", "/nowhere/x.json"], "--out /nowhere/x.json: cannot be written"),
        (["status", "{run}", "--colour", "red"], "--colour: unknown option"),
    ],
)
def test_bad_input_is_one_line(run: Path, monkeypatch, capsys, words, said) -> None:
    monkeypatch.delenv("DOUGA_TOKEN", raising=False)
    assert main([word.format(run=run) for word in words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_run_without_records_has_no_trace(tmp_path: Path, capsys) -> None:
    folder, _ = begun(tmp_path)
    assert main(["trace", str(folder)]) == 2
    assert "no records yet" in capsys.readouterr().err
    assert main(["status", str(folder)]) == 0
    assert "not started yet" in capsys.readouterr().out


def test_a_broken_record_is_named(run: Path, capsys) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write("no JSON\n")
    assert main(["status", str(run)]) == 2
    assert "events.jsonl:4: not valid JSON" in capsys.readouterr().err


def test_watch_serves_the_page_until_sigterm(run: Path) -> None:
    command = [sys.executable, "-m", "deploy.cli", "watch", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = re.match(r"open (http://\S+)/ ", process.stdout.readline())
            assert url is not None
            with urllib.request.urlopen(f"{url[1]}/api/run", timeout=60) as answer:
                assert json.load(answer)["status"]["run"] == "mine"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (0, -signal.SIGTERM)
        finally:
            process.kill()
