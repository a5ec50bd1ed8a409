"""Recovery of a damaged ledger: replaces it with its newest snapshot that matches a checkpoint, repaired.

```
snapshots/step-000040.sqlite ──copy──> recovered.sqlite ──repair, check──> ledger.sqlite
                                       ledger.sqlite, -wal, -shm ────────> ledger.sqlite.damaged-1, -wal, -shm
```

The last step renames the repaired ledger into place. Until then `ledger.sqlite` is damaged or missing, so a recovery
that is killed can be started again. The repair does not follow the transition table of `rules.py`:

* It rolls the pairs back to the snapshot's step, as after any restart of the learner. Pairs that were trained or
  expired since then still have their blobs, because a kept checkpoint precedes the step that ended them.
* A training group that was not paired yet and lost blobs is sampled again, with the same seeds.
* A pair or a finished evaluation that lost blobs cannot be restored. The pair expires and the evaluation fails.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError, StorageError
from common.errors.disk import writing
from common.exchange import consistency
from common.exchange.api import State, WasteReason
from common.exchange.local import ledger_key
from common.exchange.sampling import SamplingQueue
from common.exchange.storage import snapshots
from common.exchange.storage.blobs import digest_of, raw
from common.exchange.storage.group_blobs import IMAGE, release_waiting, show
from common.exchange.storage.ledger import LEDGER, Ledger, LedgerDamaged
from common.exchange.training import TrainingQueue
from common.files import sync
from common.messages import Prompt, Purpose

DRAFT = "recovered.sqlite"
UNPAIRED = (State.PENDING, State.SAMPLED)  # the possible states after all leases are released


@dataclass(frozen=True, slots=True)
class Recovered:
    """The result of a recovery."""

    step: int  # of the snapshot, and of the checkpoint that the run resumes from
    damage: str  # description of the damage
    aside: Path | None  # new path of the damaged ledger; None if there was no file
    resampled: int  # groups that will be sampled again
    discarded: int  # candidates of those groups
    given_up: int  # pairs and evaluations that lost blobs


def recover(
    folder: Path,
    config: RunConfig,
    source: Callable[[int], Prompt],
    checkpoints: Collection[int],
    newest_version: int,
    before: Callable[[int], object],
    clock: Callable[[], float] = time.time,
) -> Recovered:
    """Replace a run's damaged ledger with a repaired snapshot. Reads every blob.

    The caller must hold the run's lock (`run_lock.hold`). `checkpoints` are the steps that the learner can resume from.
    `newest_version` is the highest id under weights/, or -1 if there is none; ids up to it are not used again. `before`
    is called with the snapshot's step just before the ledger is replaced.

    Raises `ConfigError` if the ledger is healthy, no snapshot matches a checkpoint, or the folder is not writable.
    """
    try:
        damage = _damage(folder, config)
        draft, step = _open_newest(folder, config, checkpoints)
        try:
            counts = _repair(draft, config, source, step, newest_version, clock)
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
    return Recovered(step, damage, aside, *counts)


def _damage(folder: Path, config: RunConfig) -> str:
    """Describe the damage. Raises `ConfigError` if there is none, or if the ledger belongs to another run."""
    if not (folder / LEDGER).exists():
        return f"{folder / LEDGER}: missing"
    try:
        ledger = Ledger(folder, ledger_key(config))
    except LedgerDamaged as error:
        return error.what
    try:
        missing = sorted(_delete_damaged_blobs(ledger))
    finally:
        ledger.close()
    if missing:
        return f"{folder / 'blobs' / missing[0]}: blob is missing or damaged ({len(missing)} in all)"
    raise ConfigError(f"{folder / LEDGER}: healthy, nothing to recover")


def _delete_damaged_blobs(ledger: Ledger) -> set[str]:
    """Delete blob files whose content does not match their hash. Returns the names of all missing blob files."""
    missing = {file for file in ledger.files() if not ledger.blobs.is_sound(file)}
    for file in missing:
        ledger.blobs.delete(file)
    return missing


def _relink_blobs(ledger: Ledger) -> None:
    """Point lost blobs to files with the same content that were written after the snapshot under another name."""
    missing = {digest_of(file): file for file in _delete_damaged_blobs(ledger)}
    for name in ledger.blobs.names():
        if digest_of(name) in missing and ledger.blobs.is_sound(name):
            ledger.run("UPDATE blobs SET file = ? WHERE file = ?", name, missing[digest_of(name)])


def _open_newest(folder: Path, config: RunConfig, checkpoints: Collection[int]) -> tuple[Ledger, int]:
    """Copy and open the newest readable snapshot that matches a checkpoint. Returns the ledger and its step."""
    for step in sorted(set(snapshots.steps(folder)).intersection(checkpoints), reverse=True):
        draft = folder / DRAFT
        with writing(draft):
            for suffix in ("-wal", "-shm"):  # left by a killed recovery: SQLite would replay them into the copy
                (folder / f"{DRAFT}{suffix}").unlink(missing_ok=True)
            shutil.copyfile(snapshots.path_of(folder, step), draft)
        try:
            return Ledger(folder, ledger_key(config), DRAFT), step
        except LedgerDamaged:
            continue
    have, need = snapshots.steps(folder), sorted(checkpoints)
    raise ConfigError(f"{folder}: cannot recover: no sound snapshot of the ledger matches a checkpoint "
                      f"(snapshots of steps {have}, checkpoints of steps {need}); choose another --name")  # fmt: skip


def _repair(
    ledger: Ledger,
    config: RunConfig,
    source: Callable[[int], Prompt],
    step: int,
    newest_version: int,
    clock: Callable[[], float],
) -> tuple[int, int, int]:
    """Make the snapshot of `step` match the blobs on disk.

    Returns the number of groups to sample again, of their discarded candidates, and of groups given up.
    """
    training = TrainingQueue(ledger, config, clock)
    sampling = SamplingQueue(ledger, config, source, clock)
    with ledger.batch():
        training.release_all()
        ledger.set_meta("oldest_resumable_step", step)  # blobs of groups that ended before may have been deleted
        if newest_version >= training.next_version():
            values = (newest_version, step, step // config.learner.steps_per_push)
            ledger.run("INSERT INTO versions (version, step, pushes, rolled_back) VALUES (?, ?, ?, 1)", *values)
        training.rollback(step)
        show(ledger, most=0)  # training needs no clips, so a missing clip must not cost a pair
        release_waiting(ledger)  # nor other candidates, most of which were collected after the snapshot
        _relink_blobs(ledger)
        damaged = [ledger.group(ordinal) for ordinal in sorted(_groups_with_lost_blobs(ledger))]
        resampled = [one["ordinal"] for one in damaged if one["state"] in UNPAIRED and one["purpose"] == Purpose.TRAIN]
        discarded = sum(len(ledger.candidates(ordinal)) for ordinal in resampled)
        for group in damaged:
            if group["ordinal"] in resampled:
                sampling.drop_candidates(group["ordinal"], WasteReason.DAMAGE)
            else:
                _give_up(ledger, group["ordinal"], step)
        # After all references to lost blobs are removed, so that storing the image again writes a new file.
        for ordinal in resampled:
            _readmit(ledger, ordinal, source(ordinal))
    ledger.clear()
    return len(resampled), discarded, len(damaged) - len(resampled)


def _groups_with_lost_blobs(ledger: Ledger) -> set[int]:
    """Ordinals of the groups that lost blobs."""
    missing = _delete_damaged_blobs(ledger)
    rows = ledger.all("SELECT ordinal, file FROM group_blobs JOIN blobs USING (digest)")
    return {row["ordinal"] for row in rows if row["file"] in missing}


def _readmit(ledger: Ledger, ordinal: int, prompt: Prompt) -> None:
    ledger.update(ordinal, state=State.PENDING, version=None, pushes=None)
    if prompt.image is not None:
        ledger.store(ordinal, IMAGE, raw(prompt.image))


def _give_up(ledger: Ledger, ordinal: int, step: int) -> None:
    """Expire a pair; fail an evaluation, which the run then queues again."""
    group = ledger.group(ordinal)
    ledger.waste(WasteReason.DAMAGE, ordinal, *(row["id"] for row in ledger.candidates(ordinal)))
    ledger.keep_only(ordinal)
    if group["purpose"] == Purpose.TRAIN:
        state = State.TRAINED if group["times_trained"] else State.EXPIRED
        ledger.update(ordinal, state=state, ended_at_step=step, reason=WasteReason.DAMAGE)
    else:
        ledger.update(ordinal, state=State.FAILED, reason="its blobs are lost")


def _set_aside(folder: Path) -> Path | None:
    """Rename the damaged ledger and its write-ahead log, which SQLite would otherwise replay into the new one."""
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
