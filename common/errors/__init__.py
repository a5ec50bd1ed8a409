"""The errors that end a command or a run, each with the exit code it leads to.

```
ConfigError, NotFoundError, CorruptDataError   exit code 2: the user can fix the cause and try again
StorageError, RunFailed                        exit code 3: the run stopped; nothing is lost
```

`disk.py` and `oom.py` recognise disk errors and out of memory in other libraries' exceptions. Every message is one line
that says what is wrong, where, and what is allowed or what to do; a bad table has one such line per row. Add a class
only if callers handle it differently. Nothing here imports torch at import time.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_LINES = 20


class ConfigError(ValueError):
    """Bad input from the user: the message says what, where, and what is allowed. Exit code 2."""


class NotFoundError(LookupError):
    """Something requested by name does not exist (any more): a ledger, a weight version. Exit code 2."""


class CorruptDataError(RuntimeError):
    """Bytes read from disk or network differ from those that were written. Exit code 2."""


BAD_INPUT = (ConfigError, NotFoundError, CorruptDataError)  # retrying without a change cannot help


class StorageError(RuntimeError):
    """The disk is full, read-only or broken: the message says where, why, and what to do. Exit code 3."""


class RunFailed(RuntimeError):
    """The run cannot continue; the message says why. All finished work is kept. Exit code 3."""


class ScratchError(RunFailed):
    """One sampler's scratch disk is full or broken. That sampler ends; the run goes on with the others."""


class UserCodeError(RunFailed):
    """Code of the user's own fails every time, so a restart cannot help; the message names file and line."""


def one_per_line(summary: str, faults: Sequence[object], most: int = MOST_LINES) -> str:
    """A summary and the first `most` faults below it, one per line; the last line counts the others."""
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "\n  ".join([f"{summary}:", *map(str, faults[:most]), *more])


def bad_input(summary: str, faults: Sequence[object]) -> ConfigError:
    """The error of one or more faults: the fault itself if it is the only one, else a summary with `one_per_line`."""
    return ConfigError(str(faults[0]) if len(faults) == 1 else one_per_line(f"{summary} ({len(faults)})", faults))
