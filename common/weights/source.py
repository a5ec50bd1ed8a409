"""The weight service: what samplers download, from the store in the run folder.

```
WeightStore ──> StoredWeights, in a Service ──manifest, chunks, deltas──> RemoteWeights, in a sampler
```

Chunks of a whole version are sent from the page cache without a copy.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, cast

from common.errors import NotFoundError
from common.messages import WeightVersion
from common.rpc.client import Client, calling
from common.rpc.curve import ServerKeys
from common.rpc.interface import calls, repeatable
from common.rpc.server import LOOPBACK, Service
from common.weights.delta_store import DeltaOffer, DeltaStore, mapped
from common.weights.store import WeightStore

CHUNK = 4 << 20  # bytes per message
AHEAD = 4  # chunks in flight
IO_THREADS = 4  # of the service; each encrypts for some of the samplers
GROWS_SECONDS = 0.05  # interval at which a sampler asks for the rest of a delta that is still being made


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

    def delta(self, version: int, digest: str, held: Mapping[int, str]) -> DeltaOffer | None:
        """See `DeltaStore.offer`."""
        ...

    @repeatable
    def delta_chunk(self, digest: str, base_digest: str, offset: int) -> bytes:
        """Up to `CHUNK` bytes of an offered delta, from `offset` on. Raises `NotFoundError` if it is gone."""
        ...


class StoredWeights:
    """A `WeightSource` that reads from a local store."""

    def __init__(self, store: WeightStore) -> None:
        self._store, self._deltas = store, DeltaStore(store)
        self._open: dict[Path, tuple[int, memoryview]] = {}  # inode and bytes of the versions that were read

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

    def delta(self, version: int, digest: str, held: Mapping[int, str]) -> DeltaOffer | None:
        """See `WeightSource`."""
        return self._deltas.offer(version, digest, held)

    def delta_chunk(self, digest: str, base_digest: str, offset: int) -> bytes:
        """See `WeightSource`."""
        return self._deltas.read(digest, base_digest, offset, CHUNK)

    def _mapped(self, path: Path) -> memoryview:
        """A version's bytes. Files are never modified in place; those that were deleted are unmapped at the next."""
        inode = path.stat().st_ino
        if path not in self._open or self._open[path][0] != inode:
            self._open = {one: found for one, found in self._open.items() if one.exists()}
            self._open[path] = inode, mapped(path)
        return self._open[path][1]


def weight_service(store: WeightStore, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """A service that serves the versions in `store`."""
    return Service(WeightSource, StoredWeights(store), address, keys=keys, io_threads=IO_THREADS)


@calling(WeightSource)
class RemoteWeights(Client, WeightSource):
    """A `WeightSource` that calls the service at `address`."""

    def chunks(self, version: int, size: int) -> Generator[memoryview, None, None]:
        """The first `size` bytes of a version's file, in order. Close the generator if you stop early."""
        offsets = ((version, offset) for offset in range(0, size, CHUNK))
        return self.stream(calls(WeightSource)["chunk"], offsets, AHEAD)

    def delta_chunks(self, version: int, digest: str, base: int, base_digest: str) -> Generator[memoryview, None, None]:
        """The bytes of a delta that was offered, in order, while it grows. Close the generator if you stop early.

        Raises:
            NotFoundError: the service gave it up.
        """
        done = 0
        while (offer := self.delta(version, digest, {base: base_digest})) is not None:
            if offer.size - done < CHUNK and not offer.whole:
                time.sleep(GROWS_SECONDS)
                continue
            starts = ((digest, base_digest, offset) for offset in range(done, offer.size, CHUNK))
            with closing(self.stream(calls(WeightSource)["delta_chunk"], starts, AHEAD)) as chunks:
                for chunk in chunks:
                    done += len(chunk)  # of the last one perhaps more than was offered
                    yield chunk
            if offer.whole:
                return
        raise NotFoundError(f"weight version {version}: its delta from version {base} was given up")
