"""Records in the run folder why a run ended: the line that goes to stderr, and the exit code.

```
finished      {"event": "finished", ...}                                        written by the run loop
interrupted   {"event": "interrupted", "step": 12}                              a first signal: by the run loop
anything else {"event": "failed", "step": 12, "words": "...", "exit_code": 3}   here; a second signal: "interrupted"
```

A process that is killed (SIGKILL, the kernel's OOM killer, a power cut) writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import StorageError
from common.errors.endings import INTERRUPTED, Ending, ending_of
from deploy.run_dir.jsonl import EVENTS, METRICS, JsonLines, read_json_lines


@contextmanager
def ending_recorded(folder: Path) -> Iterator[None]:
    """Records an error that leaves the block, and raises it again."""
    try:
        yield
    except BaseException as error:
        record_ending(folder, ending_of(error))
        raise


def record_ending(folder: Path, ending: Ending) -> None:
    """Appends the event of a run that did not finish. A disk that cannot be written keeps its own error."""
    event = "interrupted" if ending.code == INTERRUPTED else "failed"
    with suppress(OSError, ValueError, StorageError):
        steps = read_json_lines(folder / METRICS)
        step = steps[-1]["step"] if steps else 0
        with JsonLines(folder / EVENTS) as events:
            events.write(event=event, step=step, words=ending.line, exit_code=ending.code)
