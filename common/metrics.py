"""What a run writes down about itself: append-only JSON lines.

A process may be killed in the middle of a line. The next writer cuts the torn line off before it appends, and readers
pass over it, so a record is there whole or not at all. After a rollback steps repeat: `latest_by_step` keeps the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.storage import writing

METRICS, EVENTS, TIMELINE, GUARD = "metrics.jsonl", "events.jsonl", "timeline.jsonl", "guard.jsonl"


class JsonLines:
    """Appends records to a file, one JSON object a line, at once. Use as a context manager or call `close`.

    Raises `StorageFailed` where the disk refuses; then nothing of the record is there.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._path = clock, path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)  # what a full disk refused must not be written later
            self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        if not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)
        self._file.seek(0, 2)

    def write(self, **record: Any) -> None:
        """Append a record; ``time`` (seconds since 1970) is added. Values must be JSON's; NaN is refused."""
        line = json.dumps({"time": round(self._clock(), 3)} | record, allow_nan=False, ensure_ascii=False)
        rest, begin = line.encode() + b"\n", self._file.tell()
        with writing(self._path):
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


class Tail:
    """The records of a file that somebody else is writing: `read` takes in what is new."""

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self._path, self._end, self._lines = path, 0, 0  # bytes and lines taken in

    def read(self) -> list[dict[str, Any]]:
        """All whole records, in order; none when there is no file. `ValueError` names a broken line."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._end:  # another file under the same name
                    self.records, self._end, self._lines = [], 0, 0
                file.seek(self._end)
                whole = file.read()
        except FileNotFoundError:
            return self.records
        whole = whole[: whole.rfind(b"\n") + 1]
        self.records += [self._parsed(line, number) for number, line in enumerate(whole.splitlines(), self._lines + 1)]
        self._end, self._lines = self._end + len(whole), self._lines + whole.count(b"\n")
        return self.records

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self._path}:{number}: not valid JSON: {error}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file, in order; none when there is no file. `ValueError` names a broken line."""
    return Tail(path).read()


def latest_by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per step, rising: of a step that was repeated after a rollback, the last one written."""
    return [record for _, record in sorted({record["step"]: record for record in records if "step" in record}.items())]
