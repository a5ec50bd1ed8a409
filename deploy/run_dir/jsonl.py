"""Append-only JSON lines files, in which a run records its metrics, events, timeline and guardrail readings.

A process may be killed in the middle of a line. The next writer removes the incomplete line before it appends, and
readers skip it: a record is either complete or absent. Steps repeat after a rollback: `latest_by_step` keeps the last.

A file with a size bound has two parts, which readers see as one. When the newer part reaches half of the bound, it
replaces the older part.

```
timeline.jsonl        the newest records          timeline.older.jsonl        those before them
```
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.errors.disk import writing

TAIL = 1 << 16  # bytes per read while searching for the end of the last complete line
METRICS, EVENTS, TIMELINE, GUARD = "metrics.jsonl", "events.jsonl", "timeline.jsonl", "guardrails.jsonl"


class JsonLines:
    """Appends records to a file, one JSON object per line, unbuffered. Use as a context manager or call `close`.

    Raises `StorageError` if the disk fails; no part of the record is written then. The newest `bound` bytes,
    approximately, are kept (None: all).
    """

    def __init__(self, path: Path, bound: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._path, self._bound = clock, path, bound
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)  # a record that failed on a full disk must not be written later
            self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        end = size = self._file.seek(0, 2)
        while end > 0:
            begin = max(0, end - TAIL)
            self._file.seek(begin)
            newline = self._file.read(end - begin).rfind(b"\n")
            end = begin if newline < 0 else begin + newline + 1
            if newline >= 0:
                break
        if end < size:
            self._file.truncate(end)
        self._file.seek(0, 2)

    def _turn_over(self) -> None:
        """Starts a new part if the current one is full."""
        if self._bound is not None and self._file.tell() >= self._bound // 2:
            self._path.replace(older(self._path))
            full, self._file = self._file, self._path.open("ab+", buffering=0)
            full.close()

    def write(self, **record: Any) -> None:
        """Appends a record with ``time`` (Unix time). Raises `ValueError` for NaN, `TypeError` for non-JSON values."""
        line = json.dumps({"time": round(self._clock(), 3)} | record, allow_nan=False, ensure_ascii=False)
        rest = line.encode() + b"\n"
        with writing(self._path):
            self._turn_over()
            begin = self._file.tell()
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(begin)
                self._file.seek(begin)
                raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def older(path: Path) -> Path:
    """Path of the older part of a bounded file. It exists once the first part has been full."""
    return path.with_suffix(f".older{path.suffix}")


class Tail:
    """Follows a file that another process writes, its older part included. `read` parses only what is new."""

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = path
        self._known, self._end, self._lines = 0, 0, 0  # inode of the file; bytes and lines already read

    def read(self) -> list[dict[str, Any]]:
        """Returns all complete records in order, [] without a file. Raises `ConfigError` naming an invalid line."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._known or found.st_size < self._end:  # the file was replaced
                    self.records = _records(older(self._path)) if older(self._path).exists() else []
                    self._known, self._end, self._lines = found.st_ino, 0, 0
                file.seek(self._end)
                whole = file.read()
        except FileNotFoundError:
            return self.records
        whole = whole[: whole.rfind(b"\n") + 1]
        self.records += _parsed(whole, self._path, self._lines)
        self._end, self._lines = self._end + len(whole), self._lines + whole.count(b"\n")
        return self.records


def _records(path: Path) -> list[dict[str, Any]]:
    whole = path.read_bytes()
    return _parsed(whole[: whole.rfind(b"\n") + 1], path, 0)


def _parsed(whole: bytes, path: Path, lines: int) -> list[dict[str, Any]]:
    """Parses complete lines; `lines` precede them in the file and offset the line number in errors."""
    records = []
    for number, line in enumerate(whole.splitlines(), lines + 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(records[-1], dict):
            raise ConfigError(f"{path}:{number}: not a JSON object")
    return records


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns all complete records of a file and its older part in order, [] without a file.

    Raises `ConfigError` naming an invalid line.
    """
    return Tail(path).read()


def latest_by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one record per step, sorted by step. For steps repeated after a rollback, the last one written."""
    return [record for _, record in sorted({record["step"]: record for record in records if "step" in record}.items())]
