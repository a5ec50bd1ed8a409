"""The log files of a run, merged: what `douga logs` shows. Reads ``RUN/logs/`` and disturbs nobody.

A file that was rotated keeps its inode under its new name, so places in files are remembered by inode: nothing is
shown twice, and nothing is missed between two looks.
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
    """What is shown. Empty fields let everything pass."""

    role: str = ""
    worker: str = ""
    level: str = LEVELS[0]  # the lowest
    since: str = ""  # as `records.written_at` gives it

    def has(self, process: str) -> bool:
        """Whether this process's file is read at all."""
        return self.worker in ("", process) and self.role in ("", process, role_of(process))

    def passes(self, line: Line) -> bool:
        """Whether a record is shown."""
        return LEVELS.index(line.level) >= LEVELS.index(self.level) and line.time >= self.since


def filter_of(role: str, worker: str, level: str, since: str, now: datetime | None = None) -> Filter:
    """From the words of the command line. `ConfigError` names what is wrong and what is allowed."""
    if role and role not in ROLES:
        raise ConfigError(f"--role {role}: no role; there are {', '.join(ROLES)}")
    if level.upper() not in LEVELS:
        raise ConfigError(f"--level {level}: no level; there are {', '.join(LEVELS).lower()}")
    return Filter(role, worker, level.upper(), _moment(since, now or datetime.now(UTC)) if since else "")


def _moment(since: str, now: datetime) -> str:
    """``10m`` ago, or an ISO time (UTC where it names no zone)."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", since)
    try:
        if ago:
            return written_at((now - timedelta(**{UNITS[ago[2]]: float(ago[1])})).timestamp())
        moment = datetime.fromisoformat(since)
        return written_at((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise ConfigError(f"--since {since}: 30s, 10m, 2h, 1d or a time like 2026-01-31T08:15 is needed") from None


@dataclass
class LogReader:
    """Reads the log files of a run folder again and again; each `read` returns what is new, by time."""

    folder: Path
    wanted: Filter = field(default_factory=Filter)
    _read: dict[int, int] = field(default_factory=dict)  # inode -> bytes of it that were read
    _last: dict[str, Line] = field(default_factory=dict)  # process -> its record that was read last

    def processes(self) -> list[str]:
        """Who has a log file."""
        return sorted({path.name.partition(".log")[0] for path in (self.folder / LOGS).glob("*.log*")})

    def read(self, lines: int = 0) -> list[Line]:
        """New records that pass, the last `lines` of them (0: all)."""
        found = [line for one in self.processes() if self.wanted.has(one) for line in self._of(one, lines)]
        found.sort(key=lambda line: line.time)
        return found[-lines:]

    def _of(self, process: str, lines: int) -> list[Line]:
        """One process's new records, from its newest file back to where enough of them pass."""
        found: list[Line] = []
        for path in _files(self.folder / LOGS, process):
            enough = 0 < lines <= len(found)
            found = [*self._new(path, process, enough), *found]
        return found

    def _new(self, path: Path, process: str, skip: bool) -> list[Line]:
        """What is new in one file; with `skip`, or if all of it is too old, nothing: it counts as read."""
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                begin = self._read.get(found.st_ino, 0)
                if begin > found.st_size:  # another file has got the inode of a deleted one
                    begin = 0
                if skip or written_at(found.st_mtime) < self.wanted.since:
                    begin = found.st_size
                file.seek(begin)
                whole = file.read()
        except FileNotFoundError:  # rotated since it was listed: the next look finds it
            return []
        whole = whole[: whole.rfind(b"\n") + 1]
        self._read[found.st_ino] = begin + len(whole)
        return [line for line in self._records(whole.decode("utf-8", "replace"), process) if self.wanted.passes(line)]

    def _records(self, text: str, process: str) -> Iterator[Line]:
        """Records with their further lines. Those at the beginning belong to the record that was read last."""
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
    """A process's files, the newest first."""
    rotated = [path for path in folder.glob(f"{process}.log.*") if path.suffix[1:].isdigit()]
    return [folder / f"{process}.log", *sorted(rotated, key=lambda path: int(path.suffix[1:]))]
