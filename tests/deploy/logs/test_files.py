"""Log files: rotation, resume, truncated lines, failing disks."""

from __future__ import annotations

import errno
import logging
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig, load_config
from common.messages import LogEntry
from deploy.logs.files import LogFile, LogFiles


def config(**flags: Any) -> RunConfig:
    return load_config(None, {name.replace("__", "."): value for name, value in flags.items()})


def record(message: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("actors.loop", level, __file__, 1, message, (), None)


def messages(file: Path) -> list[str]:
    return [line.partition(": ")[2] for line in file.read_text().splitlines()]


def test_a_file_is_rotated_by_size(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "logs" / "hub.log", config(logs__max_bytes=10_000, logs__backups=2))
    for number in range(400):
        file.handle(record(f"{number:04d}" + "." * 96))
    file.close()
    there = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert there.keys() == {"hub.log", "hub.log.1", "hub.log.2"}
    assert max(there.values()) <= 10_000
    kept = [
        int(text[:4]) for name in ("hub.log.2", "hub.log.1", "hub.log") for text in messages(tmp_path / "logs" / name)
    ]
    assert kept == [*range(kept[0], 400)]
    assert len(kept) > 100


def test_a_resumed_run_appends_and_ends_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    for _ in range(2):
        file = LogFile(path, config())
        file.handle(record("whole"))
        file.close()
    with path.open("a") as killed:
        killed.write("2023-11-14T22:13:20.417Z INFO serial x: cut o")
    file = LogFile(path, config())
    file.handle(record("after"))
    file.close()
    assert messages(path) == ["whole", "whole", "cut o", "after"]


def test_only_processes_of_a_run_have_files(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, config())
    files.write("sampler-12", [LogEntry(1e9, logging.INFO, "x", "one"), LogEntry(1e9, logging.INFO, "x", "two")])
    files.write("sampler-12", [LogEntry(1e9, logging.INFO, "x", "three")])
    assert messages(tmp_path / "logs" / "sampler-12.log") == ["one", "two", "three"]
    for name in ("../../etc/passwd", "sampler-", "sampler-1/..", "sampler-1\n", "stranger-1", ""):
        with pytest.raises(ValueError, match="not the name of a process of a run"):
            files.write(name, [LogEntry(1e9, logging.INFO, "x", "y")])
    with pytest.raises(ValueError, match="not a time"):
        files.write("hub", [LogEntry(float("nan"), logging.INFO, "x", "y")])
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["sampler-12.log"]


def test_child_processes_inherit_no_file_descriptor(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, config())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(50):
        files.write(f"sampler-{number}", [LogEntry(1e9, logging.INFO, "x", "y")])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_full_disk_is_counted_and_reported_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "hub.log"
    file = LogFile(path, config())
    file.handle(record("before"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        for _ in range(3):
            file.handle(record("lost"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.lost == 3
    file.handle(record("after"))
    file.close()
    assert file.lost == 0
    report = f"3 log records before this one were lost: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}"
    assert messages(path) == ["before", report, "after"]


def test_a_full_device_and_an_invalid_folder_raise_nothing(tmp_path: Path) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    (tmp_path / "blocked").write_text("a file")
    for path in (tmp_path / "full.log", tmp_path / "blocked" / "hub.log"):
        file = LogFile(path, config())
        file.handle(record("one"))
        file.handle(record("two"))
        assert file.lost == 2
        file.close()
