"""How published weights travel from the learner's disk to every sampler's.

```
learner ──publish──> WeightStore ──PUB "version 7"──────────────> WeightPuller (a thread beside the sampler)
                         ▲                                             │ manifest, then chunks of CHUNK bytes
                         └──────────────── WeightSource ◄──────────────┘ into a WeightStore of its own: staged
                                                      sampler, between two groups: staged() ──> load
```

The note is only a hint that hurries the puller: one that comes late or missed a note asks for the newest version by
itself. `AHEAD` chunks are asked for at once and no more, so neither side holds more than these, and sampling goes on
meanwhile; what the sampler waits for is the load alone. Digests are compared as the bytes arrive: a version is staged
when every tensor's is right, and what is not staged leaves nothing behind.

A pull that has begun is brought to its end even when a newer version is announced, or fast pushes would starve it. It
ends early when the learner has deleted the version; then the newest is next.
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

CHUNK = 4 << 20  # bytes in one message
AHEAD = 4  # chunks asked for and not yet taken in
ASK_SECONDS = 5.0  # a puller that hears no note asks this often
KEPT = 2  # staged versions on a sampler's disk, besides the base of an adapter


class WeightSource(Protocol):
    """What a puller may ask the learner's side."""

    def newest(self) -> int:
        """The newest version that is published; -1 when there is none yet."""
        ...

    def manifest(self, version: int) -> WeightVersion:
        """What belongs to a version. `NotFoundError` when it is not there (any more)."""
        ...

    @repeatable
    def chunk(self, version: int, offset: int) -> bytes:
        """Up to `CHUNK` bytes of its safetensors file from `offset` on, a multiple of `CHUNK` within the file, or it is
        a `ValueError`. `NotFoundError` as for `manifest`."""
        ...


class StoredWeights:
    """A `WeightSource` over a store on this machine's disk. Chunks are sent from the page cache, without a copy."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._inode, self._view = -1, memoryview(b"")  # the file that was asked for last, mapped

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
            raise NotFoundError(f"weight version {version} is not there any more") from None
        if offset not in range(0, len(whole), CHUNK):
            raise ValueError(f"offset {offset}: a multiple of {CHUNK} below {len(whole)} is needed")
        return cast("bytes", whole[offset : offset + CHUNK])

    def _mapped(self, path: Path) -> memoryview:
        """The file, which stays mapped until another one is asked for; a version is never written in place."""
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_ino
            if found != self._inode:
                self._inode, self._view = found, memoryview(mmap(file.fileno(), 0, MAP_SHARED, PROT_READ))
        return self._view


class VersionPublisher:
    """Says on a PUB socket that a version is there. Losing a note loses time, nothing else.

    Off loopback it needs `keys`, or it is a `ConfigError`.
    """

    def __init__(self, address: str = LOOPBACK, keys: ServerKeys | None = None) -> None:
        self._context = zmq.Context()
        self._door = CurveAuthenticator(self._context, keys)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._door.bind(self._socket, address)
        except (ConfigError, zmq.ZMQError):
            self.close()
            raise
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def announce(self, version: int) -> None:
        """Tell whoever listens."""
        self._socket.send_string(str(version))

    def close(self) -> None:
        """Let go of the address."""
        self._socket.close()
        self._door.close()
        self._context.term()


def weight_service(store: WeightStore, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """A service that answers for the versions in `store`."""
    return Service(WeightSource, StoredWeights(store), address, keys=keys)


@calling(WeightSource)
class RemoteWeights(Client, WeightSource):
    """The calls of `WeightSource`, made by way of the service at `address`."""

    def chunks(self, version: int, size: int) -> Generator[memoryview, None, None]:
        """The first `size` bytes of a version's file, in order. Close it when you leave before the end."""
        offsets = ((version, offset) for offset in range(0, size, CHUNK))
        return self.stream(calls(WeightSource)["chunk"], offsets, AHEAD)


def pull(source: RemoteWeights, version: int, store: WeightStore, meters: Meters = NULL_METERS) -> WeightVersion:
    """Bring a version, and the base that an adapter needs, into `store`; returns its manifest.

    `NotFoundError` when it is not published (any more), `CorruptDataError` when it arrives damaged; then nothing of it
    stays.
    """
    manifest = _manifest(source, version)
    if manifest.base != version and manifest.base not in store.versions():
        base = _manifest(source, manifest.base)
        if base.base != base.version:
            raise CorruptDataError(f"weight version {version}: its base {base.version} has a base itself, {base.base}")
        _receive(source, base, store, meters)
    if version not in store.versions():
        _receive(source, manifest, store, meters)
    return manifest


def _manifest(source: WeightSource, version: int) -> WeightVersion:
    manifest = source.manifest(version)
    if manifest.version != version:
        raise CorruptDataError(f"weight version {version}: the manifest of version {manifest.version} came for it")
    return manifest


def _receive(source: RemoteWeights, manifest: WeightVersion, store: WeightStore, meters: Meters) -> None:
    size, began = file_size(manifest.tensors), time.perf_counter()
    with closing(source.chunks(manifest.version, size)) as chunks:
        awaited = TimedIterator(chunks)
        store.receive(manifest, awaited)
    meters.observe("douga_weight_push_seconds", awaited.seconds, phase="transfer")
    meters.observe("douga_weight_push_seconds", time.perf_counter() - began - awaited.seconds, phase="stage")
    meters.add("douga_weight_push_bytes_total", size, phase="transfer")


class WeightPuller:
    """Keeps the newest published version staged, and the one last asked for. ``with WeightPuller(...) as puller:``

    `source` and `notes` are the addresses of the weight service and of its announcer; `folder` is scratch of this
    worker alone; `key` lets it in at both.
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
        for address in (source, notes):  # here, where it is heard, rather than on the thread
            check_reaching(address, key is not None)
        self.failed = 0
        self.store = WeightStore(folder)
        self._source, self._notes, self._worker, self._key = source, notes, worker, key
        self._meters = meters
        self._wanted = -1
        self._refused: StorageError | None = None
        self._changed, self._stop = Condition(), Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = Thread(target=self._run, name=f"weights-{worker}", daemon=True)

    def staged(self, version: int) -> bool:
        """Whether `version` can be loaded from `store` now. It is pulled if it is not there, and kept until another
        one is asked for. `StorageError` once this machine's disk has refused one."""
        with self._changed:
            if self._refused is not None:
                raise self._refused
            if version != self._wanted:
                self._wanted = version
                os.eventfd_write(self._wake, 1)
            return version in self.store.versions()

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until `version` is staged; False when time is up."""
        with self._changed:
            return self._changed.wait_for(lambda: self.staged(version), timeout)

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and tensors of a staged version. Nothing is read or compared again: this is the sampler's pause."""
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
                while notes.poll(0):  # piled up notes count as one
                    notes.recv()

    def _stage(self, source: RemoteWeights) -> None:
        """Pull what is wanted, then the newest, if they are not here."""
        try:
            wanted = {self._wanted, source.newest()} - {-1, *self.store.versions()}
        except (Unreachable, ServiceFailed, WireError) as error:
            return self._failed(error)
        for version in sorted(wanted):
            try:
                manifest = pull(source, version, self.store, self._meters)
            except (Unreachable, ServiceFailed, *BAD_INPUT, WireError) as error:
                self._failed(error)
                continue
            except StorageError as error:
                with self._changed:
                    self._refused = error
                    self._changed.notify_all()
                return None
            with self._changed:
                self.store.prune(KEPT, needed={manifest.base, self._wanted})
                self._changed.notify_all()
        return None

    def _failed(self, error: Exception) -> None:
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
