"""Weight sync: from the learner's disk to every sampler's disk.

```
learner ──publish──> WeightStore <──manifest, chunks── WeightSource <── WeightPuller (a thread beside the sampler)
   └───announce───> EXCHANGE ───────wanted_version────────────────────────┘ stages the version on the sampler's disk
                                                     sampler, between two groups: staged() ──> load
```

The exchange alone says which version to load. The puller asks it every `ASK_SECONDS`, so that the download also starts
while a group is being sampled. A download keeps `AHEAD` chunks in flight, which bounds the memory on both sides.
Sampling continues during the download and pauses only for the load. Digests are checked as the bytes arrive: a version
is staged when all its tensors are verified, and a failed download leaves nothing behind.

A download is finished even if a newer version is announced; otherwise frequent publishing would starve slow samplers.
It stops early only if the learner has deleted the version.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Protocol, cast

import torch

from common.errors import BAD_INPUT, CorruptDataError, NotFoundError, StorageError
from common.messages import WeightVersion, WorkerKey
from common.meters import NULL_METERS, Meters, TimedIterator
from common.rpc.client import Client, ServiceFailed, Unreachable, calling
from common.rpc.codec import WireError
from common.rpc.curve import ServerKeys, check_reaching
from common.rpc.interface import calls, repeatable
from common.rpc.server import LOOPBACK, Service
from common.weights.store import WeightStore
from common.weights.tensor_file import file_size

log = logging.getLogger(__name__)

CHUNK = 4 << 20  # bytes per message
AHEAD = 4  # chunks in flight
ASK_SECONDS = 1.0  # interval at which a puller asks which version is wanted
KEPT = 2  # staged versions on a sampler's disk, besides the base of an adapter


class WeightSource(Protocol):
    """The download interface on the learner's side."""

    def versions(self) -> Sequence[int]:
        """The versions that exist, in ascending order."""
        ...

    def manifest(self, version: int) -> WeightVersion:
        """A version's manifest. Raises `NotFoundError` if the version does not exist (any more)."""
        ...

    @repeatable
    def chunk(self, version: int, offset: int) -> bytes:
        """Up to `CHUNK` bytes of a version's safetensors file, from `offset` on.

        Raises:
            ValueError: `offset` is not a multiple of `CHUNK` within the file.
            NotFoundError: the version does not exist (any more).
        """
        ...


class StoredWeights:
    """A `WeightSource` that reads from a local store. Chunks are sent from the page cache without a copy."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._inode, self._view = -1, memoryview(b"")  # the last file, memory-mapped

    def versions(self) -> Sequence[int]:
        """See `WeightSource`."""
        return self._store.versions()

    def manifest(self, version: int) -> WeightVersion:
        """See `WeightSource`."""
        return self._store.manifest(version)

    def chunk(self, version: int, offset: int) -> bytes:
        """See `WeightSource`."""
        try:
            whole = self._mapped(self._store.file(version))
        except FileNotFoundError:
            raise NotFoundError(f"weight version {version} does not exist any more") from None
        if offset not in range(0, len(whole), CHUNK):
            raise ValueError(f"offset {offset}: a multiple of {CHUNK} below {len(whole)} is needed")
        return cast("bytes", whole[offset : offset + CHUNK])

    def _mapped(self, path: Path) -> memoryview:
        """Map a file, and keep it mapped until another one is read. Version files are never modified in place."""
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_ino
            if found != self._inode:
                self._inode, self._view = found, memoryview(mmap(file.fileno(), 0, MAP_SHARED, PROT_READ))
        return self._view


def weight_service(store: WeightStore, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """A service that serves the versions in `store`."""
    return Service(WeightSource, StoredWeights(store), address, keys=keys)


@calling(WeightSource)
class RemoteWeights(Client, WeightSource):
    """A `WeightSource` that calls the service at `address`."""

    def chunks(self, version: int, size: int) -> Generator[memoryview, None, None]:
        """The first `size` bytes of a version's file, in order. Close the generator if you stop early."""
        offsets = ((version, offset) for offset in range(0, size, CHUNK))
        return self.stream(calls(WeightSource)["chunk"], offsets, AHEAD)


def pull(source: RemoteWeights, version: int, store: WeightStore, meters: Meters = NULL_METERS) -> WeightVersion:
    """Download a version into `store`, and the base version if it is an adapter. After an error nothing of it is kept.

    Returns:
        The version's manifest.

    Raises:
        NotFoundError: the version does not exist (any more).
        CorruptDataError: it arrived damaged.
    """
    manifest = _manifest(source, version)
    if manifest.base != version and manifest.base not in store.versions():
        base = _manifest(source, manifest.base)
        if base.base != base.version:
            raise CorruptDataError(f"weight version {version}: its base {base.version} is itself based on {base.base}")
        _receive(source, base, store, meters)
    if version not in store.versions():
        _receive(source, manifest, store, meters)
    return manifest


def _manifest(source: WeightSource, version: int) -> WeightVersion:
    manifest = source.manifest(version)
    if manifest.version != version:
        raise CorruptDataError(f"weight version {version}: received the manifest of version {manifest.version} instead")
    return manifest


def _receive(source: RemoteWeights, manifest: WeightVersion, store: WeightStore, meters: Meters) -> None:
    size, began = file_size(manifest.tensors), time.perf_counter()
    with closing(source.chunks(manifest.version, size)) as chunks:
        timed = TimedIterator(chunks)
        store.receive(manifest, timed)
    meters.observe("douga_weight_push_seconds", timed.seconds, phase="transfer")
    meters.observe("douga_weight_push_seconds", time.perf_counter() - began - timed.seconds, phase="stage")
    meters.add("douga_weight_push_bytes_total", size, phase="transfer")


class WeightPuller:
    """Downloads the version that the exchange wants on a background thread, before the sampler asks for it.

    Use it as ``with WeightPuller(...) as puller:``. `source` is the address of the weight service, and `key`
    authenticates there. `wanted` returns the version to load and is called on the thread. `folder` is a scratch folder
    that no other worker uses.
    """

    def __init__(
        self,
        source: str,
        wanted: Callable[[], int],
        folder: Path,
        worker: str,
        key: WorkerKey | None = None,
        meters: Meters = NULL_METERS,
    ) -> None:
        check_reaching(source, key is not None)  # fail here rather than on the thread, where no caller sees the error
        self.failed = 0
        self.store = WeightStore(folder)
        self._source, self._ask, self._worker, self._key = source, wanted, worker, key
        self._meters = meters
        self._wanted = -1
        self._disk_error: StorageError | None = None
        self._changed, self._wake, self._stopped = Condition(), Event(), False
        self._thread = Thread(target=self._run, name=f"weights-{worker}", daemon=True)

    def staged(self, version: int) -> bool:
        """Whether `version` can be loaded from `store` now.

        If not, its download is requested. The version is kept until another one is requested.

        Raises:
            StorageError: the local disk could not store a version.
        """
        with self._changed:
            if self._disk_error is not None:
                raise self._disk_error
            if version != self._wanted:
                self._wanted = version
                self._wake.set()
            return version in self.store.versions()

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until `version` is staged. Returns False on a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.staged(version), timeout)

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and tensors of a staged version, without verifying them again: the sampler pauses for this."""
        return self.store.open(version)

    def _run(self) -> None:
        with RemoteWeights.at(self._source, self._worker, self._key) as source:
            while not self._stopped:
                self._stage(source)
                self._wake.wait(ASK_SECONDS)
                self._wake.clear()

    def _stage(self, source: RemoteWeights) -> None:
        """Download the version that the exchange wants and the one that `staged` was asked for, if they are missing."""
        try:
            wanted = {self._wanted, self._ask()} - {-1, *self.store.versions()}
            if not wanted or not source.versions():  # the learner has yet to publish its first version
                return None
        except (Unreachable, ServiceFailed, StorageError, *BAD_INPUT, WireError) as error:
            return self._log_failure(error)
        for version in sorted(wanted):
            try:
                manifest = pull(source, version, self.store, self._meters)
            except (Unreachable, ServiceFailed, *BAD_INPUT, WireError) as error:
                self._log_failure(error)
                continue
            except StorageError as error:
                with self._changed:
                    self._disk_error = error
                    self._changed.notify_all()
                return None
            with self._changed:
                self.store.prune(KEPT, needed={manifest.base, self._wanted})
                self._changed.notify_all()
        return None

    def _log_failure(self, error: Exception) -> None:
        self.failed += 1
        log.warning("%s: weights not pulled: %s", self._worker, error)

    def __enter__(self) -> WeightPuller:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join()
