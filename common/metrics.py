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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.storage import writing

TAIL = 1 << 16  # bytes that are read at once in search of the last line's end
METRICS, EVENTS, TIMELINE, GUARD = "metrics.jsonl", "events.jsonl", "timeline.jsonl", "guard.jsonl"


class JsonLines:
    """Appends records to a file, one JSON object a line, at once. Use as a context manager or call `close`.

    Raises `StorageFailed` where the disk refuses; then nothing of the record is there. At most about `bound` bytes
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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file and its older part, in order; none when there is no file. `ValueError` names a broken
    line."""
    return [record for part in (older(path), path) if part.exists() for record in _records(part)]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None


def latest_by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per step, rising: of a step that was repeated after a rollback, the last one written."""
    return [record for _, record in sorted({record["step"]: record for record in records if "step" in record}.items())]
