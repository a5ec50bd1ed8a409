"""Keeps all candidates of a run's training groups in a set of bounded size: the first groups, until it is full.

```
a group is scored ──> waits in the exchange ──> fits? ── append to RUN/kept ──> drop_collected(): it waits no more
                                                   └──── no: the set is full ──> stop_keeping()
```

The exchange marks a group in the transaction that scores it, and frees it after its rows are durable. So every group is
kept once, whenever the process is killed. A start with a larger bound keeps groups again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from common.candidate_set.folder import SetWriter
from common.candidate_set.rows import candidate_name
from common.data.prompt_keys import prompt_key
from common.exchange.api import CollectedGroup, RunExchange
from common.messages import Candidate

log = logging.getLogger(__name__)

OVERHEAD = 4096  # bytes; more than a row takes without its caption, plus the headers of its files


@dataclass
class CandidateKeeper:
    """Stores the groups that wait in `exchange`, outside of the exchange's transactions.

    `on_full` is called once, with a line of text, when a group does not fit.
    """

    exchange: RunExchange
    writer: SetWriter
    weights_name: Callable[[int, str], str]  # (version, its digest) -> digest that names these weights in sets
    limit: int  # bytes
    on_full: Callable[[str], None]
    full: bool = False
    _bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self._bytes = self.writer.set.bytes_on_disk()

    def advance(self) -> None:
        """Stores the groups that were scored since the last call. Raises `StorageError` if the disk fails."""
        if self.full:
            return
        self._keep_empty_prompt()
        for group in self.exchange.collected():
            weights = self.weights_name(group.candidates[0].policy_version, group.weights)
            size = self._size_of(group, weights)
            if self._bytes + size > self.limit:
                self._stop()
                return
            self.writer.append(group, weights)
            self._bytes += size
            self.exchange.drop_collected(group.ordinal)

    def _keep_empty_prompt(self) -> None:
        if self.writer.has_empty_prompt or (embeds := self.exchange.empty_prompt()) is None:
            return
        size = len(embeds.data) + OVERHEAD
        if self._bytes + size <= self.limit:
            self.writer.keep_empty_prompt(embeds)
            self._bytes += size

    def _size_of(self, group: CollectedGroup, weights: str) -> int:
        """Bytes, at most, that the group adds to the set: nothing for candidates that are in it already."""
        key = prompt_key(group.prompt)
        new = [one for one in group.candidates if candidate_name(key, weights, one.seed) not in self.writer.set.rows]
        if not new:
            return 0
        encoded, image = group.conditioning, group.prompt.image or b""
        latent = encoded.image_latent.data if encoded.image_latent else b""
        shared = len(encoded.prompt_embeds.data) + len(latent) + len(image) + OVERHEAD
        return shared + sum(_size(one) + len(group.prompt.text.encode()) for one in new)

    def _stop(self) -> None:
        self.full = True
        self.exchange.stop_keeping()
        found = self.writer.set
        groups = len({row.ordinal for row in found.rows.values()})
        line = (
            f"{found.folder} is full: it keeps the {len(found.rows)} candidates of the first {groups} groups; "
            f"keep_candidates_bytes = {self.limit}"
        )
        log.warning("%s", line)
        self.on_full(line)


def _size(candidate: Candidate) -> int:
    return len(candidate.clip) + len(candidate.latents.data) + OVERHEAD
