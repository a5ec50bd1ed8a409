"""Decides whether a run may start over with another configuration, because there is nothing in its folder to lose.

| the run's ledger has | with another configuration the run |
|---|---|
| a scored group, or a trained step | is refused: choose another name |
| unscored clips, and the run was interrupted or killed | is refused: the same configuration would use them |
| unscored clips, and the run failed | starts over: a reward, the disk or memory failed |
| none of these | starts over |

So a configuration that is refused, at the start or at the run's first clips, does not block its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from common.candidate_set.rows import KEPT, SET
from common.errors import ConfigError
from common.exchange.api import State
from common.exchange.storage.ledger_reader import LEDGER, NotBegun, open_readonly
from common.messages import Purpose
from deploy.run_dir.jsonl import EVENTS, GUARD, METRICS, TIMELINE, read_json_lines

SCORED = (State.READY, State.TRAINING, State.TRAINED, State.EXPIRED, State.TIED, State.DONE)
# What the next start would read. Other files in the folder, such as a user's own, stay; so do the lock and the logs.
STATE = (f"{LEDGER}*", "blobs", "snapshots", "weights", "checkpoints", SET, KEPT, EVENTS, METRICS, TIMELINE, GUARD)


def has_work(folder: Path) -> bool:
    """Whether the run in `folder` has trained or scored anything, or has clips that a resumed run would use."""
    try:
        with open_readonly(folder) as ledger:
            counts = [ledger.counts(purpose) for purpose in Purpose]
            if ledger.committed_step() or any(count[state] for count in counts for state in SCORED):
                return True
            sampled = ledger.one("SELECT COUNT(*) FROM candidates")[0]
    except NotBegun:
        return False
    except ConfigError:
        return True  # damaged: the run itself says how to recover it
    events = read_json_lines(folder / EVENTS)
    return bool(sampled) and not (events and events[-1]["event"] == "failed")


def start_over(folder: Path, names: Iterable[str]) -> None:
    """Deletes the state of the run in `folder`, which the caller has locked, and the files `names` in it.

    Raises `ConfigError` if that fails."""
    try:
        for found in [path for pattern in (*STATE, *names) for path in folder.glob(pattern)]:
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot start over: {error.strerror}: {error.filename}") from None
