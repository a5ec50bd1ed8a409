"""The exit code and the line with which an error ends a command or a run."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from common.errors import BAD_INPUT, RunFailed, StorageError
from common.errors.messages import one_line
from common.errors.places import describe_error

INTERRUPTED = 130
READER_LEFT = 141  # as a shell reports SIGPIPE
PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)
UNEXPECTED = "unexpected error"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ends: its exit code, and the line on stderr."""

    code: int
    line: str


def ending_of(error: BaseException) -> Ending:
    """Returns the ending of an error (docs/operations.md). An unexpected one is named with class, file and line.

    A path that cannot be opened is the user's, wherever it was tried: it is too long, a folder, or not readable.
    """
    if isinstance(error, BAD_INPUT):
        return Ending(2, str(error))
    if isinstance(error, RunFailed | StorageError):
        return Ending(3, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted; the same command resumes a run from its last checkpoint")
    if isinstance(error, BrokenPipeError):
        return Ending(READER_LEFT, "nobody reads the output any more, as after `| head`")
    if isinstance(error, OSError) and error.errno in PATHS and error.filename is not None:
        return Ending(2, f"{one_line(os.fsdecode(error.filename))}: {error.strerror}")
    return Ending(3, f"{UNEXPECTED}: {describe_error(error)}")
