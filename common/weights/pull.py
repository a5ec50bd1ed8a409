"""Gets one version onto a sampler's disk, from the nearest place that has it.

1. Another sampler of the node, which has staged it: a hard link (`node.py`). One of them downloads at a time.
2. Version 0: the model that the sampler starts with, if its tensors have the same digests.
3. The learner's disk: the difference from a staged version (`delta.py`), else the whole file.

A version is staged when all its tensors have the digests of its manifest; a failed download leaves nothing behind. A
download keeps a few chunks in flight, which bounds the memory on both sides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from common.errors import CorruptDataError, NotFoundError
from common.messages import WeightVersion
from common.meters import NULL_METERS, Meters, TimedIterator
from common.weights.delta import decode
from common.weights.delta_store import mapped
from common.weights.node import Node
from common.weights.source import RemoteWeights
from common.weights.store import WeightStore
from common.weights.tensor_file import file_order, file_size, header
from common.weights.tensors import tensor_bytes

log = logging.getLogger(__name__)

BYTES, SECONDS = "douga_weight_push_bytes_total", "douga_weight_push_seconds"
LEAST_DELTA = 32 << 20  # bytes; smaller versions, such as adapters, are sent whole

Held = Callable[[], Mapping[str, torch.Tensor] | None]


@dataclass(frozen=True)
class Pull:
    """Stages versions in `store`: ``Pull(source, store)(version)``.

    `held` returns the weights of version 0 while the sampler holds them, else None.
    """

    source: RemoteWeights
    store: WeightStore
    meters: Meters = NULL_METERS
    node: Node = field(default_factory=Node)
    held: Held = lambda: None
    _manifests: dict[int, WeightVersion] = field(default_factory=dict)  # of the version that is being waited for

    def __call__(self, version: int) -> WeightVersion | None:
        """Stage a version, and its base version if it is an adapter. After an error nothing of it is kept.

        Returns:
            The version's manifest; None if another sampler of the node is downloading it: try again soon.

        Raises:
            NotFoundError: the version does not exist (any more).
            CorruptDataError: it arrived damaged.
            StorageError: the disk of `store` is full or broken.
        """
        waits = False
        try:
            manifest = self._manifest(version)
            waits = not (self._stage_base(manifest) and (version in self.store.versions() or self._stage(manifest)))
        finally:
            if not waits:
                self._manifests.clear()
        return None if waits else manifest

    def _manifest(self, version: int) -> WeightVersion:
        """Of the version; it is not asked for again while another sampler downloads that."""
        if version not in self._manifests:
            manifest = self.source.manifest(version)
            if manifest.version != version:
                raise CorruptDataError(
                    f"weight version {version}: received the manifest of version {manifest.version} instead"
                )
            self._manifests[version] = manifest
        return self._manifests[version]

    def _stage_base(self, manifest: WeightVersion) -> bool:
        if manifest.base in (manifest.version, *self.store.versions()):
            return True
        base = self._manifest(manifest.base)
        if base.base != base.version:
            raise CorruptDataError(
                f"weight version {manifest.version}: its base {base.version} is itself based on {base.base}"
            )
        return self._stage(base)

    def _stage(self, manifest: WeightVersion) -> bool:
        if self._link(manifest):
            return True
        with self.node.downloading(manifest.digest, self.store.folder.parent) as mine:
            if not mine:
                return False
            ways = (self._link, self._receive_held, self._receive_delta, self._receive_whole)  # or linked by now
            return any(way(manifest) for way in ways)

    def _link(self, manifest: WeightVersion) -> bool:
        found = self.node.link(manifest, self.store)
        if found:
            self.meters.add(BYTES, file_size(manifest.tensors), phase="shared")
        return found

    def _receive_held(self, manifest: WeightVersion) -> bool:
        """Write version 0 from the sampler's own weights, if they have its digests."""
        state = self.held() if manifest.version == 0 else None
        if state is None or not {entry.name for entry in manifest.tensors} <= state.keys():
            return False
        try:
            self.store.receive(manifest, _file_of(manifest, state))
        except CorruptDataError as error:
            log.info("the sampler's model is not version 0, which is downloaded: %s", error)
            return False
        return True

    def _receive_delta(self, manifest: WeightVersion) -> bool:
        """Download the difference from a staged version. Returns False if the whole version has to be sent."""
        staged = {version: self.store.manifest(version).digest for version in self.store.versions()}
        if not staged or file_size(manifest.tensors) < LEAST_DELTA:
            return False
        offer = self.source.delta(manifest.version, manifest.digest, staged)
        if offer is None:
            return False
        base = offer.base, staged[offer.base]
        try:
            with closing(self.source.delta_chunks(manifest.version, manifest.digest, *base)) as coded:
                self._receive(manifest, coded, "delta", lambda chunks: decode(chunks, mapped(self.store.file(base[0]))))
        except (CorruptDataError, NotFoundError) as error:
            given_up = isinstance(error, NotFoundError)  # as always for float32 models
            log.log(logging.INFO if given_up else logging.WARNING, "version %d whole: %s", manifest.version, error)
            return False
        return True

    def _receive_whole(self, manifest: WeightVersion) -> bool:
        with closing(self.source.chunks(manifest.version, file_size(manifest.tensors))) as chunks:
            self._receive(manifest, chunks, "transfer")
        return True

    def _receive(
        self,
        manifest: WeightVersion,
        chunks: Iterable[Any],
        phase: str,
        decoded: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> None:
        """Stage the version whose file is in `chunks`, once they are `decoded`. `phase` labels their bytes."""
        timed, began = TimedIterator(self._counted(chunks, phase)), time.perf_counter()
        self.store.receive(manifest, decoded(timed))
        self.meters.observe(SECONDS, timed.seconds, phase="transfer")
        self.meters.observe(SECONDS, time.perf_counter() - began - timed.seconds, phase="stage")

    def _counted(self, chunks: Iterable[Any], phase: str) -> Generator[Any, None, None]:
        for chunk in chunks:
            self.meters.add(BYTES, len(chunk), phase=phase)
            yield chunk


def _file_of(manifest: WeightVersion, state: Mapping[str, torch.Tensor]) -> Generator[bytes | memoryview, None, None]:
    """The safetensors file of a version, from tensors in memory with the manifest's names."""
    layout = file_order(manifest.tensors)
    yield header(layout)
    for entry in layout:
        yield tensor_bytes(state[entry.name])
