"""Fixtures of the learner's tests: random pairs, an exchange in memory, a tiny run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.config import RunConfig, load_config
from common.messages import Conditioning, PreferencePair, TrainingPair, WeightVersion
from common.models.cogvideox import ModelFolder, open_model
from common.weights.tensors import to_array
from tests.support.tiny import CHANNELS, TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline

LATENT = (3, CHANNELS, 12, 16)  # F, C, h, w of 9 frames of 48 x 64 pixels


def tiny_model(folder: Path, **overrides: Any) -> ModelFolder:
    """A model with one block of two heads. The folder is created once."""
    if not folder.exists():
        tiny_pipeline(folder, **({"num_layers": 1} | overrides))
    return open_model(folder)


def tiny_config(**learner: Any) -> RunConfig:
    """A run with 2 pairs per step, and a learning rate that has an effect within a few steps."""
    settings = {"pairs_per_step": 2, "micro_batch": 2, "lr": 1e-3, "checkpoint_every": 1000} | learner
    return load_config(flags={f"learner.{name}": value for name, value in settings.items()})


def make_pair(ordinal: int, gap: float = 0.25, lag: int = 0) -> TrainingPair:
    """A pair of random latents that depend on the ordinal only."""
    generator = torch.Generator().manual_seed(1000 + ordinal)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pair = PreferencePair(ordinal, f"{ordinal}-0-v0", f"{ordinal}-1-v0", 0.75, 0.5, gap, 0)
    conditioning = Conditioning(to_array(normal(TEXT_LENGTH, TEXT_WIDTH)), to_array(normal(1, *LATENT[1:])))
    return TrainingPair(pair, conditioning, to_array(normal(*LATENT)), to_array(normal(*LATENT)), lag)


class MemoryExchange:
    """The learner's side of an exchange: endless pairs, and a list of the calls."""

    def __init__(self, per_step: int = 2, gap: float = 0.25, limit: int = 10**6) -> None:
        self.per_step, self.gap, self.limit = per_step, gap, limit
        self.log: list[tuple[Any, ...]] = []
        self.versions: list[WeightVersion] = []

    def lease_pairs(self, worker: str, step: int, count: int) -> Sequence[TrainingPair]:
        """Pairs (step-1)·count .. step·count-1 in descending order, because a batch is a set."""
        del worker
        if step > self.limit:
            return ()
        return [make_pair(ordinal, self.gap) for ordinal in range(step * count - 1, (step - 1) * count - 1, -1)]

    def commit_step(self, step: int, ordinals: Sequence[int]) -> None:
        """Record the call."""
        self.log.append(("commit", step, tuple(ordinals)))

    def announce(self, version: WeightVersion) -> None:
        """Record the call."""
        self.log.append(("announce", version.version))
        self.versions.append(version)

    def next_version(self) -> int:
        """The newest version + 1."""
        return self.versions[-1].version + 1 if self.versions else 0

    def mark(self, step: int) -> None:
        """Record the call."""
        self.log.append(("mark", step))

    def rollback(self, step: int) -> None:
        """Record the call."""
        self.log.append(("rollback", step))
