"""A damaged ledger's way back: its newest snapshot that belongs to a checkpoint, mended, in its place.

```
snapshots/step-000040.sqlite ──copy──> recovered.sqlite ──mend, check──> ledger.sqlite
                                       ledger.sqlite, -wal, -shm ──────> ledger.sqlite.damaged-1, -wal, -shm
```

The ledger is put in place last, in one rename, and until then `ledger.sqlite` is damaged or missing: whoever dies on
the way recovers again. Mending is no work of a run, so it does not follow the table of transitions:

* what happened to pairs since the snapshot's step is taken back, as after any death of the learner; blobs of pairs that
  are trained or expired since are still there, for a kept checkpoint lies before the step that ended them;
* a group that was not paired yet, and of which blobs are gone, is sampled again: its seeds are the same;
* a pair or a finished evaluation of which blobs are gone was hurt by more than the ledger's damage, and is given up.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError, StorageError
from common.errors.disk import sync, writing
from common.exchange import consistency
from common.exchange.api import State
from common.exchange.local import ledger_key
from common.exchange.sampling import IMAGE, SamplingQueue
from common.exchange.scoring import keep_shown
from common.exchange.storage import snapshots
from common.exchange.storage.blobs import digest_of, raw
from common.exchange.storage.ledger import LEDGER, Ledger, LedgerDamaged
from common.exchange.training import TrainingQueue
from common.messages import Prompt, Purpose

DRAFT = "recovered.sqlite"
DAMAGE = "damage"  # the reason of what is lost
UNPAIRED = (State.PENDING, State.SAMPLED)  # once all leases are taken back


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done."""

    step: int  # of the snapshot, and of the checkpoint that the run goes on from
    damage: str  # what was wrong
    aside: Path | None  # where the damaged ledger is now; None where there was none
    again: int  # groups that are sampled again
    dropped: int  # candidates of theirs
    given_up: int  # pairs and evaluations whose blobs are gone


def recover(
    folder: Path,
    config: RunConfig,
    source: Callable[[int], Prompt],
    checkpoints: Collection[int],
    newest_version: int,
    before: Callable[[int], object],
    clock: Callable[[], float] = time.time,
) -> Recovered:
    """Put a mended snapshot in the place of a run's damaged ledger. The caller holds the folder (`run_lock.hold`).

    `checkpoints` are the steps that the learner can go on from; `newest_version` is the highest id under weights/, -1
    without any: no id up to it is used again. `before` is told the snapshot's step before the ledger is in its place.
    `ConfigError` when the ledger is healthy, when there is no snapshot of any of the checkpoints, and when the folder
    cannot be written. Reads every blob.
    """
    try:
        damage = _damage(folder, config)
        draft, step = _open_newest(folder, config, checkpoints)
        try:
            mended = _mend(draft, config, source, step, newest_version, clock)
            consistency.check(draft, config)
        finally:
            draft.close()
        sync(draft.path)
        before(step)
        aside = _set_aside(folder)
        draft.path.replace(folder / LEDGER)
        sync(folder)
    except StorageError as error:
        raise ConfigError(str(error)) from None
    return Recovered(step, damage, aside, *mended)


def _damage(folder: Path, config: RunConfig) -> str:
    """What is wrong with the ledger or its blobs. `ConfigError` when nothing is, or when it is another run's."""
    if not (folder / LEDGER).exists():
        return f"{folder / LEDGER}: missing"
    try:
        ledger = Ledger(folder, ledger_key(config))
    except LedgerDamaged as error:
        return error.what
    try:
        gone = sorted(_unsound(ledger))
    finally:
        ledger.close()
    if gone:
        return f"{folder / 'blobs' / gone[0]}: blob is missing or damaged ({len(gone)} in all)"
    raise ConfigError(f"{folder / LEDGER}: healthy, nothing to recover")


def _unsound(ledger: Ledger) -> set[str]:
    """The files of blobs that are gone. Those whose content is not what their name says are deleted here."""
    gone = {file for file in ledger.files() if not ledger.blobs.is_sound(file)}
    for file in gone:
        ledger.blobs.delete(file)
    return gone


def _find_again(ledger: Ledger) -> None:
    """What went since the snapshot, and then came once more, has another file: its blob is that one now."""
    gone = {digest_of(file): file for file in _unsound(ledger)}
    for name in ledger.blobs.names():
        if digest_of(name) in gone and ledger.blobs.is_sound(name):
            ledger.run("UPDATE blobs SET file = ? WHERE file = ?", name, gone[digest_of(name)])


def _open_newest(folder: Path, config: RunConfig, checkpoints: Collection[int]) -> tuple[Ledger, int]:
    """A copy of the newest readable snapshot of a checkpoint, opened, and its step."""
    for step in sorted(set(snapshots.steps(folder)).intersection(checkpoints), reverse=True):
        draft = folder / DRAFT
        with writing(draft):
            for suffix in ("-wal", "-shm"):  # of a recovery that died: it would be played into the copy
                (folder / f"{DRAFT}{suffix}").unlink(missing_ok=True)
            shutil.copyfile(snapshots.place(folder, step), draft)
        try:
            return Ledger(folder, ledger_key(config), DRAFT), step
        except LedgerDamaged:
            continue
    have, need = snapshots.steps(folder), sorted(checkpoints)
    raise ConfigError(f"{folder}: nothing to go back to: no sound snapshot of the ledger belongs to a checkpoint "
                      f"(snapshots of steps {have}, checkpoints of steps {need}); choose another --name")  # fmt: skip


def _mend(
    ledger: Ledger,
    config: RunConfig,
    source: Callable[[int], Prompt],
    step: int,
    newest_version: int,
    clock: Callable[[], float],
) -> tuple[int, int, int]:
    """Make a snapshot of `step` true to the folder as it is: groups again, candidates dropped, groups given up."""
    training = TrainingQueue(ledger, config, clock)
    sampling = SamplingQueue(ledger, config, source, clock)
    with ledger.batch():
        training.release_all()
        ledger.set_meta("final", step)  # the blobs of what ended before may be gone
        if newest_version >= training.next_version():
            values = (newest_version, step, step // config.learner.steps_per_push)
            ledger.run("INSERT INTO versions (version, step, pushes, lost) VALUES (?, ?, ?, 1)", *values)
        training.rollback(step)
        keep_shown(ledger, most=0)  # nobody trains on clips: those that went since then hurt no pair
        _find_again(ledger)
        hurt = [ledger.group(ordinal) for ordinal in sorted(_hurt(ledger))]
        again = [one["ordinal"] for one in hurt if one["state"] in UNPAIRED and one["purpose"] == Purpose.TRAIN]
        dropped = sum(len(ledger.candidates(ordinal)) for ordinal in again)
        for group in hurt:
            if group["ordinal"] in again:
                sampling.drop_candidates(group["ordinal"], DAMAGE)
            else:
                _give_up(ledger, group["ordinal"], step)
        for ordinal in again:  # now that nobody names what is gone: who brings it anew makes a file of it
            _start_anew(ledger, ordinal, source(ordinal))
    ledger.clear()
    return len(again), dropped, len(hurt) - len(again)


def _hurt(ledger: Ledger) -> set[int]:
    """The groups of which blobs are gone."""
    missing = _unsound(ledger)
    rows = ledger.all("SELECT ordinal, file FROM refs JOIN blobs USING (digest)")
    return {row["ordinal"] for row in rows if row["file"] in missing}


def _start_anew(ledger: Ledger, ordinal: int, prompt: Prompt) -> None:
    ledger.update(ordinal, state=State.PENDING, version=None, pushes=None)
    if prompt.image is not None:
        ledger.store(ordinal, IMAGE, raw(prompt.image))


def _give_up(ledger: Ledger, ordinal: int, step: int) -> None:
    """A pair expires; an evaluation fails, and is queued again by the run."""
    group = ledger.group(ordinal)
    ledger.waste(DAMAGE, ordinal, *(row["id"] for row in ledger.candidates(ordinal)))
    ledger.keep_only(ordinal)
    if group["purpose"] == Purpose.TRAIN:
        state = State.TRAINED if group["uses"] else State.EXPIRED
        ledger.update(ordinal, state=state, closed=step, reason=DAMAGE)
    else:
        ledger.update(ordinal, state=State.FAILED, reason="its blobs are gone")


def _set_aside(folder: Path) -> Path | None:
    """Move the damaged ledger out of the way, with its write-ahead log, which would be played into the new one."""
    taken = {path.name.removesuffix("-wal").removesuffix("-shm") for path in folder.glob(f"{LEDGER}.damaged-*")}
    number = next(number for number in range(1, len(taken) + 2) if f"{LEDGER}.damaged-{number}" not in taken)
    aside = folder / f"{LEDGER}.damaged-{number}"
    moved = None
    for suffix in ("", "-wal", "-shm"):
        path = folder / f"{LEDGER}{suffix}"
        with writing(path):
            if path.exists():
                path.replace(f"{aside}{suffix}")
                moved = aside
    return moved
