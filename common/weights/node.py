"""One download for all samplers of a node: whoever holds the lock downloads, the others link its file.

```
$TMPDIR/douga-scratch-sampler-0-k3j2x9/v000007/weights.safetensors ─┐ one file, two links: it stays on the disk until
$TMPDIR/douga-scratch-sampler-1-p0ab2c/v000007/weights.safetensors ─┘ the last sampler has deleted its own
$TMPDIR/douga-weights-DIGEST.lock                                     held by the sampler that downloads the version
```

A version is looked for by the digest in its manifest, so runs may share a node. Folders of other users are not looked
at. A file is linked without being read: the sampler that staged it has verified every byte. Where links or locks are
impossible, each sampler downloads for itself.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import CorruptDataError, NotFoundError, StorageError
from common.messages import WeightVersion
from common.weights.store import WeightStore
from common.weights.tensor_file import file_size

PATIENCE = 600.0  # seconds after which a sampler stops waiting for the download of another


class Node:
    """What a sampler shares with the others of its node. `folders` lists their scratch folders, perhaps its own too."""

    def __init__(
        self, folders: Callable[[], Iterable[Path]] = tuple, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folders, self._clock = folders, clock
        self._waits: tuple[str, float] = "", 0.0  # digest that another sampler downloads, and since when

    def link(self, manifest: WeightVersion, store: WeightStore) -> bool:
        """Stage a version in `store` that another sampler has staged. Returns False if nobody has."""
        size = file_size(manifest.tensors)
        for folder in self._folders():
            other = WeightStore(folder, create=False)
            if folder == store.folder or not other.file(manifest.version).exists() or not _is_own(folder):
                continue
            with suppress(NotFoundError, CorruptDataError, StorageError, OSError):  # just deleted, or no links here
                if other.manifest(manifest.version).digest == manifest.digest:
                    store.link(manifest, other.file(manifest.version), size)
                    return True
        return False

    @contextmanager
    def downloading(self, digest: str, place: Path) -> Iterator[bool]:
        """``with node.downloading(digest, place) as mine:`` `mine` is False if another sampler is downloading it.

        The lock is a file in the folder `place`, which is gone afterwards. After `PATIENCE` seconds of others'
        downloading `mine` is True, lest one sampler that hangs stops all.
        """
        path = place / f"douga-weights-{digest}.lock"
        with _locked(path) as mine:
            if not mine and self._waits[0] != digest:
                self._waits = digest, self._clock()
            yield mine or self._clock() - self._waits[1] > PATIENCE


def _is_own(folder: Path) -> bool:
    """Whether it is a folder of this user that nobody else can write to."""
    with suppress(OSError):
        found = folder.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return False


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock `path` if nobody else does. True also where there can be no lock."""
    handle = -1
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = path.stat().st_ino == os.fstat(handle).st_ino  # else it was unlinked before it was locked
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError:
        mine = True
    try:
        yield mine
    finally:
        if handle >= 0:
            with suppress(OSError):
                if mine:
                    path.unlink()
            os.close(handle)
