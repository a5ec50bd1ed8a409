"""Log files are merged, filtered and followed across rotations."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.messages import LogEntry
from deploy.inspect.logs import Filter, LogReader, filter_of
from deploy.logs.files import LogFiles
from deploy.logs.records import Line

START = 1_700_000_000.0
NOW = datetime.fromtimestamp(START + 3600, UTC)


def write(
    folder: Path, process: str, *records: tuple[float, str], level: int = logging.INFO, size: int = 10_000
) -> None:
    files = LogFiles(folder, load_config(None, {"logs.max_bytes": size, "logs.backups": 3}))
    files.write(process, [LogEntry(START + second, level, "x", message) for second, message in records])


def said(lines: list[Line]) -> list[str]:
    return [line.text.partition(" x: ")[2] for line in lines]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path, "hub", (0, "a"), (3, "d"))
    write(tmp_path, "sampler-0", (1, "b"), (2, "c\ntraceback\nend"))
    write(tmp_path, "sampler-10", (4, "e"), level=logging.ERROR)
    return tmp_path


def test_processes_are_merged_by_time_and_records_stay_whole(run: Path) -> None:
    reader = LogReader(run)
    assert reader.processes() == ["hub", "sampler-0", "sampler-10"]
    assert said(reader.read()) == ["a", "b", "c\n    traceback\n    end", "d", "e"]
    assert reader.read() == []
    write(run, "rewarder-0", (9, "new"))
    write(run, "hub", (8, "more"))
    assert said(reader.read()) == ["more", "new"]


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (Filter(role="sampler"), ["b", "c\n    traceback\n    end", "e"]),
        (Filter(role="hub"), ["a", "d"]),
        (Filter(worker="sampler-10"), ["e"]),
        (Filter(level="ERROR"), ["e"]),
        (filter_of("", "", "info", "3597s", NOW), ["d", "e"]),
        (filter_of("", "", "info", "2023-11-14T22:13:23", NOW), ["d", "e"]),
        (filter_of("", "", "info", "2023-11-14T23:13:24+01:00", NOW), ["e"]),
        (filter_of("sampler", "", "warning", "2h", NOW), ["e"]),
    ],
)
def test_filters_select_records(run: Path, wanted: Filter, shown: list[str]) -> None:
    assert said(LogReader(run, wanted).read()) == shown


def test_the_limit_counts_records_that_pass_the_filter(run: Path) -> None:
    assert said(LogReader(run).read(2)) == ["d", "e"]
    assert said(LogReader(run, Filter(role="hub")).read(1)) == ["d"]
    reader = LogReader(run)
    reader.read(1)
    assert reader.read() == []  # skipped records count as read


def test_rotations_lose_and_repeat_nothing(tmp_path: Path) -> None:
    reader, shown, written = LogReader(tmp_path), [], 0
    for look in range(30):
        for _ in range(7 * (look % 4)):
            write(tmp_path, "hub", (written / 1000, f"{written:06d}" + "." * 200))
            written += 1
        shown += [int(text[:6]) for text in said(reader.read())]
    assert len(list((tmp_path / "logs").iterdir())) == 4
    assert shown == [*range(written)]


def test_the_first_read_goes_back_through_rotated_files(tmp_path: Path) -> None:
    for number in range(100):
        write(tmp_path, "hub", (number, f"{number:06d}" + "." * 200))
    assert [int(text[:6]) for text in said(LogReader(tmp_path).read(60))] == [*range(40, 100)]


def test_an_incomplete_line_is_read_once_it_is_complete(run: Path) -> None:
    reader, path = LogReader(run), run / "logs" / "hub.log"
    reader.read()
    with path.open("a") as file:
        file.write("2023-11-14T22:14:20.417Z INFO hub x: ha")
        file.flush()
        assert reader.read() == []
        file.write("lf\n")
    assert said(reader.read()) == ["half"]
    with path.open("a") as file:
        file.write("    a further line that comes later\n")
    (late,) = reader.read()
    assert (late.time, late.level, late.text) == (
        "2023-11-14T22:14:20.417Z", "INFO", "    a further line that comes later",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("learners", "", "info", ""), "--role learners: unknown role; allowed: driver, hub, learner, sampler"),
        (("", "", "loud", ""), "--level loud: unknown level; allowed: debug, info, warning, error, critical"),
        (("", "", "info", "yesterday"), "--since yesterday: must be like 30s, 10m, 2h, 1d"),
        (("", "", "info", "99999999999d"), "--since 99999999999d: must be like 30s, "),
    ],
)
def test_invalid_filters_are_named(words: tuple[str, str, str, str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        filter_of(*words)
