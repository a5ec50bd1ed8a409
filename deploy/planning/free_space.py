"""Compares the free space at the run folder with what the run will need, before anything is made there.

What it needs are the plan's own numbers: blobs, weight versions and checkpoints that are kept at the same time, plus
the held-out clips and the candidates that are to be kept. Logs, the ledger and the report are small beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError
from common.errors.disk import amount
from common.models.fingerprint import model_folder
from deploy.planning.model_sizes import folder_sizes
from deploy.planning.plan import Disk, disk_of

PARTS = ("blobs", "weights", "checkpoints", "clips", "kept", "candidates")  # folders of a run that grow
COPIES = 2  # of a held-out clip: in the exchange, and in RUN/clips


def check_space(config: RunConfig, notify: Callable[[str], None]) -> None:
    """Tells `notify` if the free space is less than what the run will need. Simulated runs need almost none.

    Raises `ConfigError` if a new run could not even store its base model, version 0 of the weights.
    """
    if config.simulate:
        return
    with suppress(OSError):  # a file system that does not say
        free = shutil.disk_usage(_existing(config.folder)).free
        first, need = _needs(config)
        there = _used(config.folder)
        if not there and free < first:
            raise ConfigError(
                f"{config.folder}: {amount(free)} are free there, and one weight version takes {amount(first)}: free "
                "some space, or choose another --root"
            )
        if free < need - there:
            notify(
                f"{config.folder}: {amount(free)} are free there; the run will need {amount(need - there)} (blobs, "
                "weight versions, checkpoints, clips: douga plan). When the disk is full it stops and can be resumed"
            )


def _needs(config: RunConfig) -> tuple[int, int]:
    """Bytes of the first weight version, and of all that a run keeps at the same time."""
    sizes, size = folder_sizes(model_folder(config.model.path)), config.model
    disk = disk_of(config, sizes, sizes.latent_shape(size.frames, size.height, size.width))
    if config.collect.prompts:
        return 0, config.collect.prompts * disk.group
    clips = 2 * COPIES * config.evaluation.prompts * disk.clip
    return disk.push, disk.blobs + disk.versions + disk.checkpoints + clips + _kept(config, disk)


def _kept(config: RunConfig, disk: Disk) -> int:
    return min(config.keep_candidates_bytes, config.steps * config.learner.batch_size * disk.group)


def _existing(folder: Path) -> Path:
    """The folder, or the first of its parents that exists."""
    return next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))


def _used(folder: Path) -> int:
    """Bytes that the run has stored already."""
    files = (file for part in PARTS for file in (folder / part).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())
