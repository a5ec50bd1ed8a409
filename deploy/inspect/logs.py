"""Merges the log files of a run by time, for `douga logs`. Only reads ``RUN/logs/``.

A rotated file keeps its inode under its new name. Read positions are therefore kept by inode, so that no record is
shown twice or missed between two reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common.errors import ConfigError
from common.roles import HUB, LEARNER, REWARDER, SAMPLER, SERIAL, role_of
from deploy.logs.files import DRIVER
from deploy.logs.records import LEVELS, Line, parsed, written_at
from deploy.run_dir.layout import LOGS

ROLES = (DRIVER, HUB, LEARNER, SAMPLER, REWARDER, SERIAL)
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Filter:
    """Selects log records. An empty field accepts everything."""

    role: str = ""
    worker: str = ""
    level: str = LEVELS[0]  # the lowest accepted level
    since: str = ""  # the earliest accepted time, in the format of `records.written_at`

    def has(self, process: str) -> bool:
        """Whether the files of this process are read."""
        return self.worker in ("", process) and self.role in ("", process, role_of(process))

    def passes(self, line: Line) -> bool:
        """Whether a record's level and time are accepted."""
        return LEVELS.index(line.level) >= LEVELS.index(self.level) and line.time >= self.since


def filter_of(role: str, worker: str, level: str, since: str, now: datetime | None = None) -> Filter:
    """Builds a filter from command-line options; `since` is relative to `now`, by default the present.

    Raises `ConfigError` for an unknown role or level and for an invalid time.
    """
    if role and role not in ROLES:
        raise ConfigError(f"--role {role}: unknown role; allowed: {', '.join(ROLES)}")
    if level.upper() not in LEVELS:
        raise ConfigError(f"--level {level}: unknown level; allowed: {', '.join(LEVELS).lower()}")
    return Filter(role, worker, level.upper(), _moment(since, now or datetime.now(UTC)) if since else "")


def _moment(since: str, now: datetime) -> str:
    """Parses ``10m`` (ago) or an ISO time (UTC if it has no zone)."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", since)
    try:
        if ago:
            return written_at((now - timedelta(**{UNITS[ago[2]]: float(ago[1])})).timestamp())
        moment = datetime.fromisoformat(since)
        return written_at((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise ConfigError(f"--since {since}: must be like 30s, 10m, 2h, 1d or 2026-01-31T08:15") from None


@dataclass
class LogReader:
    """Reads the log files of a run folder repeatedly; each `read` returns the new records, ordered by time."""

    folder: Path
    wanted: Filter = field(default_factory=Filter)
    _read: dict[int, int] = field(default_factory=dict)  # inode -> number of bytes read
    _last: dict[str, Line] = field(default_factory=dict)  # process -> the last record read

    def processes(self) -> list[str]:
        """Returns the names of the processes that have a log file, sorted."""
        return sorted({path.name.partition(".log")[0] for path in (self.folder / LOGS).glob("*.log*")})

    def read(self, lines: int = 0) -> list[Line]:
        """Returns the new records that pass the filter, at most the last `lines` (0: all)."""
        found = [line for one in self.processes() if self.wanted.has(one) for line in self._of(one, lines)]
        found.sort(key=lambda line: line.time)
        return found[-lines:]

    def _of(self, process: str, lines: int) -> list[Line]:
        """Returns one process's new records, going back through its files until at least `lines` pass."""
        found: list[Line] = []
        for path in _files(self.folder / LOGS, process):
            enough = 0 < lines <= len(found)
            found = [*self._new(path, process, enough), *found]
        return found

    def _new(self, path: Path, process: str, skip: bool) -> list[Line]:
        """Returns the new records of one file. With `skip`, or if the file is too old, marks it as read instead."""
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                begin = self._read.get(found.st_ino, 0)
                if begin > found.st_size:  # a new file reuses the inode of a deleted one
                    begin = 0
                if skip or written_at(found.st_mtime) < self.wanted.since:
                    begin = found.st_size
                file.seek(begin)
                whole = file.read()
        except FileNotFoundError:  # rotated since it was listed; the next read finds it
            return []
        whole = whole[: whole.rfind(b"\n") + 1]
        self._read[found.st_ino] = begin + len(whole)
        return [line for line in self._records(whole.decode("utf-8", "replace"), process) if self.wanted.passes(line)]

    def _records(self, text: str, process: str) -> Iterator[Line]:
        """Yields records with their continuation lines. Leading ones belong to the record that was read last."""
        current: Line | None = None
        for row in text.split("\n")[:-1]:
            head = parsed(row)
            if head is None:
                before = current or self._last.get(process, Line("", LEVELS[0], process, ""))
                current = replace(before, text=f"{current.text}\n{row}" if current else row)
                continue
            if current is not None:
                yield current
            current = head
        if current is not None:
            self._last[process] = current
            yield current


def _files(folder: Path, process: str) -> list[Path]:
    """Returns a process's log files, newest first."""
    rotated = [path for path in folder.glob(f"{process}.log.*") if path.suffix[1:].isdigit()]
    return [folder / f"{process}.log", *sorted(rotated, key=lambda path: int(path.suffix[1:]))]
