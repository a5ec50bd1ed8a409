"""A sampler for candidate sets: training candidates are read from a set instead of being sampled.

```
StoredGroups(ordinal) ──> N candidates: latents, clips, the encoded prompt, all as they were sampled
```

For exchange and learner these are ordinary groups. The policy version of such a group only says when it was read.
Held-out prompts and probes are sampled as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from actors.loop import SamplingLoop
from actors.prompts.source import PromptSource
from common.candidate_set.groups import StoredGroups
from common.config import RunConfig
from common.messages import (
    Candidate,
    Conditioning,
    Prompt,
    Purpose,
    SerializedTensor,
    WeightVersion,
    candidate_id,
)


@dataclass(frozen=True)
class StoredPrompts:
    """A `PromptSource` with a set's prompts for training and the held-out prompts of `others`."""

    groups: StoredGroups
    others: PromptSource

    def __call__(self, ordinal: int) -> Prompt:
        """The prompt of the group with this ordinal."""
        return replace(self.groups.set.prompt(self.groups(ordinal)[0]), ordinal=ordinal)

    @property
    def training_prompts(self) -> int:
        """See `PromptSource.training_prompts`."""
        return len(self.groups)

    def heldout(self, count: int, seed: int) -> list[Prompt]:
        """See `PromptSource.heldout`."""
        return self.others.heldout(count, seed)


class StoredSampler(SamplingLoop):
    """Reads training candidates; everything else is done by `online`, a sampler with a model.

    Without `online`, for a run that samples nothing, it holds no weights: a version is only a number.
    """

    def __init__(self, online: SamplingLoop | None, groups: StoredGroups, config: RunConfig, worker: str) -> None:
        super().__init__(worker)
        self._online, self._groups, self._size = online, groups, config.model

    def load(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        """See `SamplingLoop.load`."""
        if self._online is not None:
            self._online.load(version, state)
        self.version = version.version

    def base_weights(self) -> Mapping[str, torch.Tensor] | None:
        """See `SamplingLoop.base_weights`."""
        return None if self._online is None else self._online.base_weights()

    def encode(self, prompt: Prompt) -> Conditioning:
        """See `SamplingLoop.encode`. A training prompt was encoded when its candidates were sampled."""
        if prompt.purpose is not Purpose.TRAIN:
            return self._sampler().encode(prompt)
        return self._groups.set.conditioning(self._groups(prompt.ordinal)[0])

    def empty_prompt_embeds(self) -> SerializedTensor:
        """See `SamplingLoop.empty_prompt_embeds`."""
        return self._groups.set.empty_prompt() if self._online is None else self._online.empty_prompt_embeds()

    def _sampler(self) -> SamplingLoop:
        if self._online is None:
            raise RuntimeError(f"{self.worker}: asked to sample, but the run samples nothing")
        return self._online

    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """See `SamplingLoop.parts`. Of a training prompt, one candidate at a time."""
        if prompt.purpose is not Purpose.TRAIN:
            yield from self._sampler().parts(prompt, conditioning, seeds, indices)
            return
        for index in sorted(indices):
            yield [self._stored(prompt, index, seeds[index])]

    def _stored(self, prompt: Prompt, index: int, seed: int) -> Candidate:
        """Candidate `index` of the group. Its seed in the run is not the one that it was sampled with."""
        size, row, found = self._size, self._groups(prompt.ordinal)[index], self._groups.set
        name = candidate_id(prompt.ordinal, index, self.version)
        numbers = (prompt.ordinal, index, seed, self.version)
        return Candidate(name, *numbers, found.latents(row), found.clip(row), size.fps, size.height, size.width)
