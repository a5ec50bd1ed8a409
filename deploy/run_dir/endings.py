"""Records in the run folder why a run ended: the line that goes to stderr, and the exit code.

```
finished      {"event": "finished", ...}                                        written by the run loop
interrupted   {"event": "interrupted", "step": 12}                              a first signal: by the run loop
anything else {"event": "failed", "step": 12, "words": "...", "exit_code": 3}   here; a second signal: "interrupted"
```

A process that is killed (SIGKILL, the kernel's OOM killer, a power cut) writes nothing. The next start records that:

```
killed        {"event": "killed", "step": 12, "words": "..."}
```
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import StorageError
from common.errors.endings import INTERRUPTED, Ending, ending_of
from deploy.run_dir.jsonl import EVENTS, METRICS, JsonLines, read_json_lines

log = logging.getLogger(__name__)


ENDS = ("finished", "interrupted", "failed", "killed")
KILLED = "ended without recording why: killed by SIGKILL, the OOM killer or a power cut; see douga logs"


@contextmanager
def ending_recorded(folder: Path) -> Iterator[None]:
    """Records an error that leaves the block, and raises it again."""
    try:
        yield
    except BaseException as error:
        record_ending(folder, ending_of(error))
        raise


def record_kill(folder: Path) -> None:
    """Records, at a start, that the process before left no end."""
    events = read_json_lines(folder / EVENTS)
    if not events or events[-1]["event"] in (*ENDS, "recovered"):
        return
    log.warning("the process before %s", KILLED)
    with JsonLines(folder / EVENTS) as file:
        file.write(event="killed", step=_step(folder), words=KILLED)


def record_ending(folder: Path, ending: Ending) -> None:
    """Appends the event of a run that did not finish. A disk that cannot be written keeps its own error."""
    event = "interrupted" if ending.code == INTERRUPTED else "failed"
    with suppress(OSError, ValueError, StorageError), JsonLines(folder / EVENTS) as events:
        events.write(event=event, step=_step(folder), words=ending.line, exit_code=ending.code)


def _step(folder: Path) -> int:
    steps = read_json_lines(folder / METRICS)
    return steps[-1]["step"] if steps else 0
