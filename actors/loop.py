"""The sampler's loop, whatever makes the candidates: lease a group, make what is missing of it, submit.

```
lease_group ──> encode (once per prompt) ──> parts: some candidates at a time ──> submit_candidate
     ▲ waits for admission                                                             │
     └──────────── load(version): weights are swapped between groups ──────────────────┘
```
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.exchange.api import Exchange, FailureKind, Submitted
from common.messages import Candidate, Conditioning, GroupLease, Prompt, SerializedTensor, WeightVersion

if TYPE_CHECKING:  # a simulated sampler starts without torch
    import torch

log = logging.getLogger(__name__)


class SamplingError(RuntimeError):
    """No candidate can be made."""


class NonFiniteError(SamplingError):
    """The model gave NaN or infinity."""


class SamplingLoop(ABC):
    """Samples under `version`, for `worker`. Starts with version 0, the base weights."""

    def __init__(self, worker: str) -> None:
        self.version, self.worker = 0, worker

    @abstractmethod
    def load(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        """Swap in a published version."""

    @abstractmethod
    def encode(self, prompt: Prompt) -> Conditioning:
        """What the model is conditioned on. `ConfigError` for a missing or broken image."""

    @abstractmethod
    def empty_prompt_embeds(self) -> SerializedTensor:
        """The embedding [L, D] of the empty caption, for guidance and for caption dropout."""

    @abstractmethod
    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """The candidates `indices` of the group whose seeds are `seeds` (all N of them), some at a time, in rising
        order. `SamplingError` when there is none to be had."""

    def work(self, exchange: Exchange) -> bool:
        """Lease one group, sample what is not yet done of it, submit. False when there is nothing to do now.

        Bad input and non-finite latents give the lease back with the reason; a lost lease ends the group quietly.
        """
        lease = exchange.lease_group(self.worker, self.version)
        if lease is None:
            return False
        if lease.version != self.version:
            raise RuntimeError(f"{self.worker} holds version {self.version} but was leased version {lease.version}")
        try:
            self._sample_lease(exchange, lease)
        except (ConfigError, SamplingError) as error:
            log.warning("group %d given back: %s", lease.prompt.ordinal, error)
            kind = FailureKind.NON_FINITE if isinstance(error, NonFiniteError) else FailureKind.OTHER
            exchange.fail_group(lease, str(error), kind)
        return True

    def _sample_lease(self, exchange: Exchange, lease: GroupLease) -> None:
        conditioning = self.encode(lease.prompt)
        if _lost(exchange.submit_conditioning(lease, conditioning)):
            return
        rest = [index for index in range(len(lease.seeds)) if index not in lease.done]
        for part in self.parts(lease.prompt, conditioning, lease.seeds, rest):
            if any(_lost(exchange.submit_candidate(lease, candidate)) for candidate in part):
                return
            exchange.renew(self.worker)


def _lost(answer: Submitted) -> bool:
    """Whether the lease is gone; a duplicate is as good as accepted."""
    return not answer.accepted and "duplicate" not in answer.reason
