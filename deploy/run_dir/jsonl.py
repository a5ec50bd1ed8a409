"""What a run writes down about itself: append-only JSON lines.

A process may be killed in the middle of a line. The next writer cuts the torn line off before it appends, and readers
pass over it, so a record is there whole or not at all. After a rollback steps repeat: `latest_by_step` keeps the last.

A file with a bound has two parts, and readers see both as one: when the newer is full (half of the bound) it becomes
the older, and what was the older is gone.

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

from common.errors.disk import writing

TAIL = 1 << 16  # bytes that are read at once in search of the last line's end
METRICS, EVENTS, TIMELINE, GUARD = "metrics.jsonl", "events.jsonl", "timeline.jsonl", "guard.jsonl"


class JsonLines:
    """Appends records to a file, one JSON object a line, at once. Use as a context manager or call `close`.

    Raises `StorageError` where the disk refuses; then nothing of the record is there. At most about `bound` bytes
    (None: all) are kept, the newest.
    """

    def __init__(self, path: Path, bound: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._path, self._bound = clock, path, bound
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)  # what a full disk refused must not be written later
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
        """Begin a new part where the present one is full."""
        if self._bound is not None and self._file.tell() >= self._bound // 2:
            self._path.replace(older(self._path))
            full, self._file = self._file, self._path.open("ab+", buffering=0)
            full.close()

    def write(self, **record: Any) -> None:
        """Append a record; ``time`` (seconds since 1970) is added. Values must be JSON's; NaN is refused."""
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
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def older(path: Path) -> Path:
    """The part of a bounded file that was there before the newest; there is none before it is needed."""
    return path.with_suffix(f".older{path.suffix}")


class Tail:
    """The records of a file that somebody else is writing, with its older part: `read` takes in what is new."""

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = path
        self._known, self._end, self._lines = 0, 0, 0  # the file's inode; bytes and lines taken in of it

    def read(self) -> list[dict[str, Any]]:
        """All whole records, in order; none when there is no file. `ValueError` names a broken line."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._known or found.st_size < self._end:  # another file under the same name
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
    """The records of whole lines, before which `lines` stand in the file."""
    records = []
    for number, line in enumerate(whole.splitlines(), lines + 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None
    return records


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file and its older part, in order; none when there is no file. `ValueError` names a broken
    line."""
    return Tail(path).read()


def latest_by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per step, rising: of a step that was repeated after a rollback, the last one written."""
    return [record for _, record in sorted({record["step"]: record for record in records if "step" in record}.items())]
