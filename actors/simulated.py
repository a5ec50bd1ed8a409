"""A simulated sampler without a model: it sleeps, then returns random data of the right size (`simulate = true`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.loop import SamplingError, SamplingLoop
from common.config import RunConfig
from common.messages import Candidate, Conditioning, Prompt, SerializedTensor, WeightVersion, candidate_id
from common.simulation import Simulation, data


class SimulatedSampler(SamplingLoop):
    """A sampler whose candidates are functions of (prompt, seed, version), as with a real model."""

    def __init__(self, config: RunConfig, worker: str = "sampler-0") -> None:
        super().__init__(worker)
        self._config, self._simulation, self._groups = config, Simulation(config), 0

    def load(self, version: WeightVersion, state: Mapping[str, Any]) -> None:
        """See `SamplingLoop.load`."""
        self._simulation.work(self._config.simulation.load_seconds, "load", self.worker, version.version)
        self.version = version.version

    def encode(self, prompt: Prompt) -> Conditioning:
        """See `SamplingLoop.encode`. It does not sleep: a real sampler has most prompts in its cache."""
        return Conditioning(data(self._config.simulation.embeds_bytes, "text", prompt.id), None)

    def empty_prompt_embeds(self) -> SerializedTensor:
        """See `SamplingLoop.empty_prompt_embeds`."""
        return data(self._config.simulation.embeds_bytes, "text", "")

    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """See `SamplingLoop.parts`. Failures depend on the worker and on its count of groups, so a retry can pass."""
        self._groups += 1
        if self._simulation.fails("group", prompt.ordinal, self.worker, self._groups):
            raise SamplingError(f"simulated failure in {self.worker}")
        for index in indices:
            self._simulation.work(self._config.simulation.sample_seconds, "sample", prompt.ordinal, index, self.version)
            yield [self._candidate(prompt, index, seeds[index])]

    def _candidate(self, prompt: Prompt, index: int, seed: int) -> Candidate:
        size, what = self._config.simulation, (prompt.ordinal, seed, self.version)
        return Candidate(
            id=candidate_id(prompt.ordinal, index, self.version),
            ordinal=prompt.ordinal,
            index=index,
            seed=seed,
            policy_version=self.version,
            latents=data(size.latents_bytes, "latents", *what),
            clip=data(size.clip_bytes, "clip", *what).data,
        )
