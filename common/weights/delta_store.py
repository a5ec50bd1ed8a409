"""Deltas between the versions of a store, made when a sampler first asks for one, and sent while they are being made.

```
weights/deltas/DIGEST-from-DIGEST     coded form (`delta.py`) of a version against another; grows until it is whole
```

A delta is made once for all samplers, by threads of the hub, so that the learner does not wait for it. It is used if it
saves at least half of the bytes. Deltas whose version was deleted are deleted too. The folder is a cache: every start
of a run begins with an empty one, and if its disk is full, whole versions are sent.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from threading import Lock, Thread

from common.errors import NotFoundError
from common.messages import WeightVersion
from common.weights.delta import BLOCK, encode
from common.weights.store import WeightStore

log = logging.getLogger(__name__)

FOLDER = "deltas"
TRIAL = 16 * BLOCK  # bytes after which a delta that saves too little is given up
WORTH = 0.5  # largest size of a delta that is used, relative to its version


@dataclass(frozen=True, slots=True)
class DeltaOffer:
    """What there is of the delta between two versions. Weight service -> sampler."""

    base: int  # the version to apply it to
    size: int  # bytes that can be read so far
    whole: bool  # nothing will be added


@dataclass
class _Delta:
    """The state of a delta that is being made, or was."""

    version: int
    path: Path
    size: int = 0
    whole: bool = False
    useless: bool = False


class DeltaStore:
    """The deltas of a store's versions. One process at a time, and one thread calls it."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._made: dict[tuple[str, str], _Delta] = {}  # (digest of the version, of its base)
        self._making = Lock()  # one delta at a time

    def offer(self, version: int, digest: str, held: Mapping[int, str]) -> DeltaOffer | None:
        """The delta of `version`, which has `digest`, against the nearest of the `held` versions, id -> digest.

        It is being made from now on. None if the whole version should be read, for it has too little in common with any
        of `held`.

        Raises:
            NotFoundError: the version does not exist (any more).
        """
        bases = held.keys() & set(self._store.versions())
        for base in sorted(bases, key=lambda one: (abs(one - version), one)):
            found = self._made.get((digest, held[base])) or self._start(version, digest, base, held[base])
            if found is not None:
                return None if found.useless else DeltaOffer(base, found.size, found.whole)
        return None

    def _start(self, version: int, digest: str, base: int, base_digest: str) -> _Delta | None:
        """Begin to make a delta. None if the digests are not those of the versions, or their layouts differ."""
        manifest = self._store.manifest(version)
        other = self._store.manifest(base)
        if (manifest.digest, other.digest) != (digest, base_digest) or _layout(manifest) != _layout(other):
            return None
        folder = self._store.folder / FOLDER
        if not self._made:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier start
        self._forget_deleted()
        found = _Delta(version, folder / f"{digest}-from-{base_digest}")
        self._made[digest, base_digest] = found
        Thread(target=self._make, args=(found, base), name="weights-delta", daemon=True).start()
        return found

    def _forget_deleted(self) -> None:
        """Delete the deltas of deleted versions."""
        left = self._store.versions()
        for key in [key for key, one in self._made.items() if one.version not in left]:
            self._made.pop(key).path.unlink(missing_ok=True)

    def _make(self, delta: _Delta, base: int) -> None:
        with self._making:
            try:
                useful = self._write(delta, mapped(self._store.file(delta.version)), mapped(self._store.file(base)))
            except Exception as error:  # a full disk, a version that was just deleted: samplers must not wait for ever
                log.warning("version %d is sent whole, as no delta could be made: %s", delta.version, error)
                useful = False
            if not useful:
                delta.path.unlink(missing_ok=True)
                delta.useless = True

    def _write(self, delta: _Delta, new: memoryview, old: memoryview) -> bool:
        """Write the coded form. Returns whether it is small enough to be used."""
        delta.path.parent.mkdir(exist_ok=True)
        size = 0
        with delta.path.open("wb") as file:
            for done, coded in encode(new, old):
                file.write(coded)
                file.flush()
                size += len(coded)
                if done >= min(TRIAL, len(new)):
                    if size > WORTH * done:
                        return False
                    delta.size = size  # nobody reads a delta that might still be given up at once
        delta.whole = True
        log.info("version %d: a delta of %.1f %% of its bytes", delta.version, 100 * delta.size / len(new))
        return True

    def read(self, digest: str, base_digest: str, offset: int, count: int) -> bytes:
        """Up to `count` bytes of a delta that `offer` named, from `offset` on.

        Raises:
            NotFoundError: there is no such delta (any more).
        """
        found = self._made.get((digest, base_digest))
        if found is None or found.useless or not 0 <= offset < found.size:
            raise NotFoundError(f"no delta of weights {digest:.40} from {base_digest:.40} at byte {offset}")
        with found.path.open("rb") as file:
            file.seek(offset)
            return file.read(min(count, found.size - offset))


def mapped(path: Path) -> memoryview:
    """A file's bytes, memory-mapped. They stay valid when the file is deleted."""
    with path.open("rb") as file:
        return memoryview(mmap(file.fileno(), 0, MAP_SHARED, PROT_READ))


def _layout(version: WeightVersion) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(entry.name, entry.dtype, entry.shape) for entry in version.tensors]
