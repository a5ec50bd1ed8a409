"""Converts log records to lines of text and back.

```
2026-01-31T08:15:02.417Z WARNING sampler-3 actors.loop: group 17 given back: no such file
    a further line of the same record, e.g. of a traceback, is indented
```

Times are UTC, so that files of several nodes can be merged. Records also come from other machines: they are truncated
to `LONGEST` characters, and control characters become ``?``, so that no message can imitate another record or send
escape sequences to a terminal.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from common.messages import LogEntry

LONGEST = 8_000  # characters of a message
LOGGER = 100  # characters of a logger's name
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
INDENT = "    "
HEAD = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z) ({'|'.join(LEVELS)}) (\S+) (\S+): (.*)", re.DOTALL)


def entry_of(record: logging.LogRecord) -> LogEntry:
    """Converts a standard library record. The message includes the traceback, if there is one."""
    message = logging.Formatter("%(message)s").format(record)
    return LogEntry(record.created, record.levelno, record.name[:LOGGER], _cut(message.rstrip("\n")))


def record_of(entry: LogEntry) -> logging.LogRecord:
    """Converts an entry to a standard library record. Raises `ValueError` if its time is invalid."""
    written_at(entry.created)
    level = _name(entry.level)
    fields = {"created": entry.created, "name": entry.logger, "msg": entry.message, "levelname": level}
    return logging.makeLogRecord(fields | {"levelno": logging.getLevelNamesMapping()[level]})


def as_text(process: str, entry: LogEntry) -> str:
    """Formats an entry as one or more lines, without a trailing newline."""
    logger = "".join(letter if letter.isprintable() and letter != " " else "?" for letter in entry.logger[:LOGGER])
    message = _plain(_cut(entry.message)).replace("\n", f"\n{INDENT}")
    return f"{written_at(entry.created)} {_name(entry.level)} {process} {logger or '-'}: {message}"


def written_at(seconds: float) -> str:
    """Formats Unix time as ``2026-01-31T08:15:02.417Z``. Raises `ValueError` for an invalid time."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{seconds!r}: not a time: {error}") from None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class Line:
    """A parsed record. `text` is the whole record, continuation lines included."""

    time: str
    level: str
    process: str
    text: str


def parsed(line: str) -> Line | None:
    """Returns the record that starts with this line, or None for a continuation line."""
    found = HEAD.fullmatch(line)
    return Line(found[1], found[2], found[3], line) if found else None


def _name(level: int) -> str:
    """Name of the standard level at or below a number."""
    return LEVELS[min(max(level // 10, 1), len(LEVELS)) - 1]


def _cut(message: str) -> str:
    left = len(message) - LONGEST
    return message if left <= 0 else f"{message[:LONGEST]}... ({left} more characters)"


def _plain(message: str) -> str:
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in message)
