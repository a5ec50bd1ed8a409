"""The sampler's work loop, common to all samplers: lease some candidates of a group, sample them, submit them.

```
lease_sampling ──> encode (once per prompt) ──> parts: some candidates at a time ──> submit_candidate
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
from common.exchange.api import FailureKind, SamplerExchange, Submitted
from common.messages import Candidate, Conditioning, Prompt, SamplingLease, SerializedTensor, WeightVersion

if TYPE_CHECKING:  # a simulated sampler starts without torch
    import torch

log = logging.getLogger(__name__)


class SamplingError(RuntimeError):
    """The model cannot make a candidate."""


class NonFiniteLatentsError(SamplingError):
    """The model produced NaN or infinity in the latents."""


class SamplingLoop(ABC):
    """A sampler. It holds the weights of one policy version, `version`: at first 0, the base model.

    Several samplers may share a group; each encodes its prompt, and the first one stores the conditioning.
    """

    def __init__(self, worker: str) -> None:
        self.version, self.worker = 0, worker

    @abstractmethod
    def load(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        """Swap in a published version."""

    def base_weights(self) -> Mapping[str, torch.Tensor] | None:
        """The model's tensors while it holds version 0, so that nobody has to send them. None later, or without one."""
        return None

    @abstractmethod
    def encode(self, prompt: Prompt) -> Conditioning:
        """Encode caption and first frame. Raises `ConfigError` for a missing or broken image."""

    @abstractmethod
    def empty_prompt_embeds(self) -> SerializedTensor:
        """The embedding [L, D] of the empty caption, for classifier-free guidance and prompt dropout."""

    @abstractmethod
    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """Sample the candidates `indices`, in ascending order, one or more at a time.

        `seeds` are the seeds of all N candidates of the group.

        Raises:
            SamplingError: the latents are not finite.
        """

    def work(self, exchange: SamplerExchange) -> int:
        """Lease some candidates of one group, at most a micro-batch, sample and submit them.

        Bad input and non-finite latents return the lease with a reason. If the lease is lost, the rest is skipped.

        Returns:
            The number of leased candidates, 0 if there is nothing to sample now.
        """
        lease = exchange.lease_sampling(self.worker, self.version)
        if lease is None:
            return 0
        if lease.version != self.version:
            raise RuntimeError(f"{self.worker} holds version {self.version} but was leased version {lease.version}")
        try:
            self._sample_lease(exchange, lease)
        except (ConfigError, SamplingError) as error:
            log.warning("group %d failed: %s", lease.prompt.ordinal, error)
            kind = FailureKind.NON_FINITE if isinstance(error, NonFiniteLatentsError) else FailureKind.OTHER
            exchange.fail_sampling(lease, str(error), kind)
        return len(lease.indices)

    def _sample_lease(self, exchange: SamplerExchange, lease: SamplingLease) -> None:
        conditioning = self.encode(lease.prompt)
        if not lease.encoded and _lost(exchange.submit_conditioning(lease, conditioning)):
            return
        for part in self.parts(lease.prompt, conditioning, lease.seeds, lease.indices):
            if any(_lost(exchange.submit_candidate(lease, candidate)) for candidate in part):
                return
            exchange.renew(self.worker)
        log.debug("group %d: %s sampled under version %d", lease.prompt.ordinal, lease.indices, lease.version)


def _lost(answer: Submitted) -> bool:
    """Whether the lease is lost. A duplicate counts as accepted."""
    return not answer.accepted and "duplicate" not in answer.reason
