"""Writes the files in ``RUN/logs/``, in the process that holds the run folder.

A full or failing disk never ends the run: lost records are counted, and the count is logged before the next record
that can be written. A line that a crash truncated is terminated before the next one is appended.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from threading import Lock
from typing import IO, Any

from common.config import RunConfig
from common.messages import LogEntry
from common.roles import HUB, ROLES, SERIAL
from deploy.logs.records import as_text, entry_of, record_of
from deploy.logs.redaction import Redactor
from deploy.run_dir.layout import LOGS

DRIVER = "driver"
PROCESS = re.compile(rf"{HUB}|{SERIAL}|{DRIVER}|(?:{'|'.join(ROLES)})-\d{{1,9}}")


class LogFile(RotatingFileHandler):
    """Handler that appends to the log file of one process. Never raises. `redact` is applied to every line."""

    def __init__(self, path: Path, config: RunConfig, redact: Redactor | None = None) -> None:
        super().__init__(path, maxBytes=config.logs.max_bytes, backupCount=config.logs.backups, encoding="utf-8",
                         errors="replace", delay=True)  # fmt: skip
        self.redact = redact or Redactor()
        self.lost = 0  # records lost since the last one that was written
        self._why = ""
        self._process = path.stem

    def format(self, record: logging.LogRecord) -> str:
        """See `deploy/logs/records.py`."""
        return self.redact(as_text(self._process, entry_of(record)))

    def emit(self, record: logging.LogRecord) -> None:
        """Appends a record, or counts it as lost."""
        lost = self.lost
        if lost:
            super().emit(_report(f"{lost} log records before this one were lost: {self._why}"))
            if self.lost > lost:
                return  # failed again; the lost report is counted in place of this record
            self.lost = 0
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called inside the `except` block. Drops the stream with its buffer, which would be written out of order."""
        self.lost += 1
        self._why = str(sys.exc_info()[1])
        self._drop_stream()

    def suspend(self) -> None:
        """Closes the file until the next record."""
        self.acquire()
        try:
            self._drop_stream()
        finally:
            self.release()

    def close(self) -> None:
        """Closes the file."""
        self.suspend()
        super().close()

    def _drop_stream(self) -> None:
        stream, self.stream = self.stream, None  # type: ignore[assignment]
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.close()

    def _open(self) -> IO[Any]:
        path = Path(self.baseFilename)
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _is_torn(path)
        stream = super()._open()
        if torn:
            stream.write("\n")
        return stream


def _report(message: str) -> logging.LogRecord:
    return record_of(LogEntry(time.time(), logging.WARNING, __name__, message))


def _is_torn(path: Path) -> bool:
    """Whether the last line lacks its newline."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


class LogFiles:
    """All log files of a run folder. Thread-safe."""

    def __init__(self, folder: Path, config: RunConfig, redact: Redactor | None = None) -> None:
        self._folder, self._config, self._redact = folder / LOGS, config, redact or Redactor()
        self._files: dict[str, LogFile] = {}
        self._lock = Lock()

    def of(self, process: str) -> LogFile:
        """Returns the handler of a process. Raises `ValueError` if a run has no process of that name."""
        if not PROCESS.fullmatch(process):
            raise ValueError(f"{process!r:.60}: not the name of a process of a run")
        with self._lock:
            if process not in self._files:
                self._files[process] = LogFile(self._folder / f"{process}.log", self._config, self._redact)
            return self._files[process]

    def write(self, process: str, entries: Sequence[LogEntry]) -> None:
        """Appends the records of another process, then closes the file, because there may be many workers.

        Raises `ValueError` for an unknown process name or an invalid time.
        """
        file, records = self.of(process), [record_of(entry) for entry in entries]
        for record in records:
            file.handle(record)
        file.suspend()
