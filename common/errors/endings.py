"""The exit code and the line with which an error ends a command or a run."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import BAD_INPUT, RunFailed, StorageError
from common.errors.places import describe_error

INTERRUPTED = 130
UNEXPECTED = "unexpected error"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ends: its exit code, and the line on stderr."""

    code: int
    line: str


def ending_of(error: BaseException) -> Ending:
    """Returns the ending of an error (docs/operations.md). An unexpected one is named with class, file and line."""
    if isinstance(error, BAD_INPUT):
        return Ending(2, str(error))
    if isinstance(error, RunFailed | StorageError):
        return Ending(3, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted; the same command resumes a run from its last checkpoint")
    return Ending(3, f"{UNEXPECTED}: {describe_error(error)}")
