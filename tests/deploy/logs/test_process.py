"""Logging of one process: what is in its file, at which level, and that all changes are undone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from common.config import load_config
from deploy.logs.files import LogFile
from deploy.logs.process import logging_to


def test_the_first_record_has_process_host_and_versions(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "hub.log", config := load_config())
    with logging_to(file, config, "hub"):
        pass
    file.close()
    first, last = (tmp_path / "hub.log").read_text().splitlines()
    assert "INFO hub deploy.logs.process: started: hub, host " in first
    version = ".".join(map(str, sys.version_info[:3]))
    assert f", pid {os.getpid()}, python {version}, douga " in first
    assert first.endswith("model toon, configuration runs/toon/config.toml")
    assert last.endswith("hub ended")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_warnings_errors_and_threads_are_logged(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "hub.log", config := load_config())
    with pytest.raises(ZeroDivisionError), logging_to(file, config, "hub"):
        _warn_and_break()
    file.close()
    text = (tmp_path / "hub.log").read_text()
    assert "WARNING hub py.warnings: " in text
    assert "DeprecationWarning: deprecated" in text
    assert "thread heartbeat ended with an error\n    Traceback (most recent call last):" in text
    assert "hub ended with an error\n    Traceback (most recent call last):" in text
    assert text.count("    ZeroDivisionError: division by zero\n") == 2


def _warn_and_break() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0, name="heartbeat")
    thread.start()
    thread.join(60)
    1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ("level", "kept"), [("debug", ["d", "i", "w", "e"]), ("info", ["i", "w", "e"]), ("error", ["e"])]
)
def test_the_level_is_that_of_the_configuration(tmp_path: Path, level: str, kept: list[str]) -> None:
    file = LogFile(tmp_path / "hub.log", config := load_config(None, {"logs.level": level}))
    log, other = logging.getLogger("actors.loop"), logging.getLogger("httpx")
    with logging_to(file, config, "hub"):
        for letter, number in (("d", 10), ("i", 20), ("w", 30), ("e", 40)):
            log.log(number, "%s", letter)
        other.setLevel(logging.INFO)
        other.info("noise")
        other.setLevel(logging.NOTSET)
    file.close()
    path = tmp_path / "hub.log"
    lines = path.read_text().splitlines()
    assert [line[-1] for line in lines if " actors.loop: " in line] == kept
    assert not [line for line in lines if "httpx" in line]


def test_all_logging_changes_are_undone(tmp_path: Path) -> None:
    root, own = logging.getLogger(), logging.getLogger("deploy")
    before = (list(root.handlers), own.level, threading.excepthook, warnings.showwarning)
    file = LogFile(tmp_path / "hub.log", config := load_config())
    with logging_to(file, config, "hub"):
        assert file in root.handlers
    file.close()
    assert (list(root.handlers), own.level, threading.excepthook, warnings.showwarning) == before


def test_a_terminal_shows_only_warnings_and_errors(tmp_path: Path) -> None:
    code = """if True:
        import logging, sys
        from pathlib import Path
        from common.config import load_config
        from deploy.logs.files import LogFile
        from deploy.logs.process import logging_to
        config = load_config()
        try:
            with logging_to(LogFile(Path(sys.argv[1]), config), config, "serial"):
                logging.getLogger("deploy").info("quiet")
                logging.getLogger("deploy").warning("loud")
                raise ValueError("told by somebody else, in one line")
        except ValueError:
            pass
        assert "torch" not in sys.modules
    """
    command = [sys.executable, "-c", code, str(tmp_path / "serial.log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == "loud\n"
    text = (tmp_path / "serial.log").read_text()
    assert "quiet" in text
    assert "    ValueError: told by somebody else, in one line\n" in text
