"""How published weights travel from the learner's disk to every sampler's.

```
learner ──publish──> WeightStore ──PUB "version 7"──────────────> WeightPuller (a thread beside the sampler)
                         ▲                                             │ manifest, then chunks of CHUNK bytes
                         └──────────────── WeightSource ◄──────────────┘ into a WeightStore of its own: staged
                                                      sampler, between two groups: staged() ──> load
```

The note is only a hint that hurries the puller: one that comes late or missed a note asks for the newest version by
itself. Chunks are asked for one by one, so neither side holds more than one of them, and sampling goes on meanwhile;
what the sampler waits for is the load alone. A version counts as staged when every tensor's digest is right.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Protocol

import zmq

from common.config import ConfigError
from common.keys import Door, ServerKeys, WorkerKey, check_reaching, connect
from common.messages import WeightVersion
from common.rpc import LOOPBACK, Client, Service, ServiceFailed, Unreachable, calling
from common.weights import WeightStore
from common.wire import WireError

log = logging.getLogger(__name__)

CHUNK = 8 << 20  # bytes in one message
ASK_SECONDS = 5.0  # a puller that hears no note asks this often
KEPT = 2  # staged versions on a sampler's disk, besides the base of an adapter


class WeightSource(Protocol):
    """What a puller may ask the learner's side."""

    def newest(self) -> int:
        """The newest version that is published; -1 when there is none yet."""
        ...

    def manifest(self, version: int) -> WeightVersion:
        """What belongs to a version. `ConfigError` when it is not there (any more)."""
        ...

    def size(self, version: int) -> int:
        """Bytes of its safetensors file."""
        ...

    def chunk(self, version: int, offset: int) -> bytes:
        """Up to `CHUNK` bytes of that file from `offset` on."""
        ...


class StoredWeights:
    """A `WeightSource` over a store on this machine's disk."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store

    def newest(self) -> int:
        """See `WeightSource`."""
        return max(self._store.versions(), default=-1)

    def manifest(self, version: int) -> WeightVersion:
        """See `WeightSource`."""
        return self._store.manifest(version)

    def size(self, version: int) -> int:
        """See `WeightSource`."""
        return self._store.file(version).stat().st_size

    def chunk(self, version: int, offset: int) -> bytes:
        """See `WeightSource`."""
        with self._store.file(version).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK)


class Announcer:
    """Says on a PUB socket that a version is there. Losing a note loses time, nothing else.

    Off loopback it needs `keys`, or it is a `ConfigError`.
    """

    def __init__(self, address: str = LOOPBACK, keys: ServerKeys | None = None) -> None:
        self._context = zmq.Context()
        self._door = Door(self._context, keys)
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


def pull(source: WeightSource, version: int, store: WeightStore) -> WeightVersion:
    """Bring a version, and the base that an adapter needs, into `store`; returns its manifest.

    `ConfigError` when it is not published (any more) or arrives damaged; then nothing of it stays.
    """
    manifest = source.manifest(version)
    if manifest.base != version and manifest.base not in store.versions():
        pull(source, manifest.base, store)
    if version not in store.versions():
        size = source.size(version)
        store.receive(manifest, (source.chunk(version, offset) for offset in range(0, size, CHUNK)))
    return manifest


class WeightPuller:
    """Keeps the newest published version staged, and the one last asked for. ``with WeightPuller(...) as puller:``

    `source` and `notes` are the addresses of the weight service and of its announcer; `folder` is scratch of this
    worker alone; `key` lets it in at both.
    """

    def __init__(self, source: str, notes: str, folder: Path, worker: str, key: WorkerKey | None = None) -> None:
        for address in (source, notes):  # here, where it is heard, rather than on the thread
            check_reaching(address, key is not None)
        self.failed = 0
        self.store = WeightStore(folder)
        self._source, self._notes, self._worker, self._key = source, notes, worker, key
        self._wanted = -1
        self._changed = Condition()
        self._hurry, self._stop = Event(), Event()
        self._thread = Thread(target=self._run, name=f"weights-{worker}", daemon=True)

    def staged(self, version: int) -> bool:
        """Whether `version` can be loaded from `store` now. It is pulled if it is not there, and kept until another
        one is asked for."""
        with self._changed:
            if version != self._wanted:
                self._wanted = version
                self._hurry.set()
            return version in self.store.versions()

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until `version` is staged; False when time is up."""
        with self._changed:
            return self._changed.wait_for(lambda: self.staged(version), timeout)

    def _run(self) -> None:
        with (
            zmq.Context() as context,
            context.socket(zmq.SUB) as notes,
            RemoteWeights.at(self._source, self._worker, self._key) as source,
        ):
            notes.setsockopt(zmq.LINGER, 0)
            notes.setsockopt_string(zmq.SUBSCRIBE, "")
            connect(notes, self._notes, self._key)
            while not self._stop.is_set():
                self._hurry.clear()
                self._stage(source)
                self._listen(notes)

    def _listen(self, notes: zmq.Socket[bytes]) -> None:
        """Until a note, a stop, a question for another version, or time to ask. Piled up notes count as one."""
        for _ in range(round(ASK_SECONDS / 0.02)):
            if self._stop.is_set() or self._hurry.is_set() or notes.poll(20):
                break
        while notes.poll(0):
            notes.recv()

    def _stage(self, source: RemoteWeights) -> None:
        """Pull what is wanted, then the newest, if they are not here."""
        try:
            wanted = {self._wanted, source.newest()} - {-1, *self.store.versions()}
        except (Unreachable, ServiceFailed, WireError) as error:
            return self._failed(error)
        for version in sorted(wanted):
            try:
                manifest = pull(source, version, self.store)
            except (Unreachable, ServiceFailed, ConfigError, WireError) as error:
                self._failed(error)
                continue
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
        self._thread.join()
