"""The errors that end a command or a run, each with the exit code it leads to.

```
ConfigError, NotFoundError, CorruptDataError   exit code 2: the user can fix the cause and try again
StorageError, RunFailed                        exit code 3: the run stopped; nothing is lost
```

`disk.py` and `oom.py` recognise a full disk and missing memory in other libraries' errors. Every message is one line
that says what, where, and what is allowed. Nothing here imports torch.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """Bad input from the user: the message says what, where, and what is allowed. Exit code 2."""


class NotFoundError(LookupError):
    """Something that was asked for by name does not exist (any more): a ledger, a weight version. Exit code 2."""


class CorruptDataError(RuntimeError):
    """Bytes on a disk or from a wire are not the bytes that were written. Exit code 2."""


BAD_INPUT = (ConfigError, NotFoundError, CorruptDataError)  # retrying without a change cannot help


class StorageError(RuntimeError):
    """The disk refuses what the run needs: the message says where, why, and the way out. Exit code 3."""


class RunFailed(RuntimeError):
    """The run cannot continue; the message says why. What was done so far is kept. Exit code 3."""
