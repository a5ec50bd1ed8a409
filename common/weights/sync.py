"""Weight sync: from the learner's disk to every sampler's disk.

```
learner ──publish──> WeightStore ──PUB "version 7"──────────────> WeightPuller (a thread beside the sampler)
                         ▲                                             │ manifest, then chunks of CHUNK bytes
                         └──────────────── WeightSource ◄──────────────┘ into a WeightStore of its own: staged
                                                      sampler, between two groups: staged() ──> load
```

A notification is only a hint: a puller that missed it asks for the newest version every `ASK_SECONDS`. A download keeps
`AHEAD` chunks in flight, which bounds the memory on both sides. Sampling continues during the download and pauses only
for the load. Digests are checked as the bytes arrive: a version is staged when all its tensors are verified, and a
failed download leaves nothing behind.

A download is finished even if a newer version is announced; otherwise frequent publishing would starve slow samplers.
It stops early only if the learner has deleted the version; then the newest one is downloaded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import closing
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Protocol, cast

import torch
import zmq

from common.errors import BAD_INPUT, ConfigError, CorruptDataError, NotFoundError, StorageError
from common.messages import WeightVersion, WorkerKey
from common.meters import NULL_METERS, Meters, TimedIterator
from common.rpc.client import Client, ServiceFailed, Unreachable, calling, calls, repeatable
from common.rpc.codec import WireError
from common.rpc.curve import CurveAuthenticator, ServerKeys, check_reaching, connect
from common.rpc.server import LOOPBACK, Service
from common.weights.store import WeightStore
from common.weights.tensor_file import file_size

log = logging.getLogger(__name__)

CHUNK = 4 << 20  # bytes per message
AHEAD = 4  # chunks in flight
ASK_SECONDS = 5.0  # interval at which a puller asks for the newest version, if no notification arrives
KEPT = 2  # staged versions on a sampler's disk, besides the base of an adapter


class WeightSource(Protocol):
    """The download interface on the learner's side."""

    def newest(self) -> int:
        """The newest published version; -1 if there is none yet."""
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

    def newest(self) -> int:
        """See `WeightSource`."""
        return max(self._store.versions(), default=-1)

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


class VersionPublisher:
    """Announces new versions on a PUB socket. A lost notification only delays the download.

    Raises:
        ConfigError: `address` is not loopback and there are no `keys`.
    """

    def __init__(self, address: str = LOOPBACK, keys: ServerKeys | None = None) -> None:
        self._context = zmq.Context()
        self._authenticator = CurveAuthenticator(self._context, keys)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._authenticator.bind(self._socket, address)
        except (ConfigError, zmq.ZMQError):
            self.close()
            raise
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def announce(self, version: int) -> None:
        """Notify all connected pullers."""
        self._socket.send_string(str(version))

    def close(self) -> None:
        """Unbind the socket."""
        self._socket.close()
        self._authenticator.close()
        self._context.term()


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
    """Downloads versions on a background thread: the newest one, and the one that `staged` last asked for.

    Use it as ``with WeightPuller(...) as puller:``. `source` is the address of the weight service, `notes` that of its
    `VersionPublisher`; `key` authenticates at both. `folder` is a scratch folder that no other worker uses.
    """

    def __init__(
        self,
        source: str,
        notes: str,
        folder: Path,
        worker: str,
        key: WorkerKey | None = None,
        meters: Meters = NULL_METERS,
    ) -> None:
        for address in (source, notes):  # fail here rather than on the thread, where no caller sees the error
            check_reaching(address, key is not None)
        self.failed = 0
        self.store = WeightStore(folder)
        self._source, self._notes, self._worker, self._key = source, notes, worker, key
        self._meters = meters
        self._wanted = -1
        self._disk_error: StorageError | None = None
        self._changed, self._stop = Condition(), Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
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
                os.eventfd_write(self._wake, 1)
            return version in self.store.versions()

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until `version` is staged. Returns False on a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.staged(version), timeout)

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and tensors of a staged version, without verifying them again: the sampler pauses for this."""
        return self.store.open(version)

    def _run(self) -> None:
        with (
            zmq.Context() as context,
            context.socket(zmq.SUB) as notes,
            RemoteWeights.at(self._source, self._worker, self._key) as source,
        ):
            notes.setsockopt(zmq.LINGER, 0)
            notes.setsockopt_string(zmq.SUBSCRIBE, "")
            connect(notes, self._notes, self._key)
            poller = zmq.Poller()
            poller.register(notes, zmq.POLLIN)
            poller.register(self._wake, zmq.POLLIN)
            while not self._stop.is_set():
                self._stage(source)
                ready = dict(poller.poll(round(1000 * ASK_SECONDS)))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                while notes.poll(0):  # many notifications count as one
                    notes.recv()

    def _stage(self, source: RemoteWeights) -> None:
        """Download the requested and the newest version if they are missing."""
        try:
            wanted = {self._wanted, source.newest()} - {-1, *self.store.versions()}
        except (Unreachable, ServiceFailed, WireError) as error:
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
        self._stop.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
