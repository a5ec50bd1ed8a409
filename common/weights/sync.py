"""Weight sync: from the learner's disk to every sampler's disk.

```
learner ──publish──> WeightStore <──manifest, delta or chunks── WeightPuller (a thread beside the sampler)
   └───announce───> EXCHANGE ───────wanted_version─────────────────┘ stages the version on the sampler's disk
                                              sampler, between two groups: choose() ──> load
```

The exchange says which version to load. The puller asks it every `ASK_SECONDS`, so that the download also starts while
a group is being sampled; `pull.py` says where the version comes from. Sampling continues during the download and pauses
only for the load.

A download is finished even if a newer version is announced; otherwise frequent publishing would starve slow samplers.
The sampler loads such a version too, if the newer one is not there yet. A download stops early only if the learner has
deleted the version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Condition, Event, Thread

import torch

from common.errors import BAD_INPUT, ScratchError, StorageError
from common.errors.disk import without_advice
from common.messages import WeightVersion, WorkerKey
from common.meters import NULL_METERS, Meters
from common.rpc.client import ServiceFailed, Unreachable
from common.rpc.codec import WireError
from common.rpc.curve import check_reaching
from common.weights.node import Node
from common.weights.pull import Held, Pull
from common.weights.source import RemoteWeights
from common.weights.store import WeightStore

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0  # interval at which a puller asks which version is wanted
NEAR_SECONDS = 0.2  # interval at which it looks whether another sampler of the node has staged it
DISK_SECONDS = 30.0  # interval at which it tries to write again after its disk failed
KEPT = 2  # staged versions on a sampler's disk, besides 0 and the base of an adapter
FAILURES = (Unreachable, ServiceFailed, *BAD_INPUT, WireError)  # that a later attempt may not have


class WeightPuller:
    """Downloads the version that the exchange wants on a background thread, before the sampler asks for it.

    Use it as ``with WeightPuller(...) as puller:``. `source` is the address of the weight service, and `key`
    authenticates there. `wanted` returns the version to load and is called on the thread. `folder` is a scratch folder
    that no other worker uses; `nearby` lists those of the samplers on this node. `held` returns the weights of version
    0 while the sampler holds them, else None; it too is called on the thread.
    """

    def __init__(
        self,
        source: str,
        wanted: Callable[[], int],
        folder: Path,
        worker: str,
        key: WorkerKey | None = None,
        meters: Meters = NULL_METERS,
        nearby: Callable[[], Iterable[Path]] = tuple,
        held: Held = lambda: None,
    ) -> None:
        check_reaching(source, key is not None)  # fail here rather than on the thread, where no caller sees the error
        self.failed = 0
        self.store = WeightStore(folder)
        self._source, self._ask, self._worker, self._key = source, wanted, worker, key
        self._meters, self._node, self._held = meters, Node(nearby), held
        self._requested, self._chosen = -1, -1
        self._line: list[int] = []  # versions that the exchange wanted, up to the last; a rollback removes those above
        self._disk_fault = ""
        self._changed, self._wake, self._stopped = Condition(), Event(), False
        self._thread = Thread(target=self._run, name=f"weights-{worker}", daemon=True)

    def choose(self, held: int, wanted: int) -> int:
        """The version to load now, by a sampler that holds `held`: one that `load` takes, or `held`.

        That is `wanted` if it is staged. If not, its download is requested, and it is the newest staged version that
        was wanted after `held` and before `wanted`.
        """
        with self._changed:
            if wanted == held or self.staged(wanted):
                self._chosen = wanted
            else:
                between = (one for one in self.store.versions() if held < one < wanted and one in self._line)
                self._chosen = max(between, default=held)
            return self._chosen

    def staged(self, version: int) -> bool:
        """Whether `version` can be loaded from `store` now.

        If not, its download is requested. The version is kept until another one is requested.
        """
        with self._changed:
            if version != self._requested:
                self._requested = version
                self._wake.set()
            return version in self.store.versions()

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until `version` is staged. Returns False on a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.staged(version), timeout)

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and tensors of a staged version, without verifying them again: the sampler pauses for this."""
        return self.store.open(version)

    def check_disk(self) -> None:
        """Raise `ScratchError` if no version can be staged, for the disk is full or broken. It is tried again."""
        with self._changed:
            if self._disk_fault:
                raise ScratchError(self._disk_fault)

    def _run(self) -> None:
        with RemoteWeights.at(self._source, self._worker, self._key) as source:
            pull = Pull(source, self.store, self._meters, self._node, self._held)
            while not self._stopped:
                pause = self._stage(pull)
                self._wake.wait(pause)
                self._wake.clear()

    def _stage(self, pull: Pull) -> float:
        """Stage what is wanted and missing. Returns the seconds until the next attempt."""
        try:
            missing = self._missing(pull.source)
        except (*FAILURES, StorageError) as error:
            self._log_failure(error)
            return ASK_SECONDS
        for version in missing:
            try:
                manifest = self._pull(pull, version)
            except FAILURES as error:
                self._log_failure(error)
                continue
            except StorageError as error:
                self._disk_failed(error)
                return DISK_SECONDS
            if manifest is None:
                return 0.0
            self._staged(manifest)
        return ASK_SECONDS

    def _pull(self, pull: Pull, version: int) -> WeightVersion | None:
        """Wait up to `ASK_SECONDS` for another sampler's download; None if it takes longer, or if there is news."""
        ends = time.monotonic() + ASK_SECONDS
        while (manifest := pull(version)) is None and time.monotonic() < ends and not self._wake.wait(NEAR_SECONDS):
            pass
        return manifest

    def _missing(self, source: RemoteWeights) -> list[int]:
        """The versions to stage, the most urgent first; none before the learner has published its first one.

        They are 0 if the sampler still holds it, for the next version is a small difference from it; the one that the
        exchange wants; and the one that was requested.
        """
        wanted = self._ask()
        with self._changed:
            self._hear(wanted)
            first = [0] if self._held() is not None else []
            wanted_ones = dict.fromkeys([*first, wanted, self._requested])
            missing = [one for one in wanted_ones if one >= 0 and one not in self.store.versions()]
        return missing if missing and source.versions() else []

    def _hear(self, wanted: int) -> None:
        self._line = [*(one for one in self._line if one < wanted), wanted]

    def _staged(self, manifest: WeightVersion) -> None:
        with self._changed:
            self._disk_fault = ""
            self.store.prune(KEPT, needed={0, manifest.base, self._requested, self._chosen})
            self._changed.notify_all()

    def _disk_failed(self, error: StorageError) -> None:
        fault = f"{self._worker}: weights not staged: {without_advice(error)}"
        with self._changed:
            if fault != self._disk_fault:
                log.warning("%s", fault)
            self.failed, self._disk_fault = self.failed + 1, fault
            self._changed.notify_all()

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
