"""Helpers of the learner's tests: random groups, an exchange in memory, a tiny run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.config import RunConfig, load_config
from common.messages import Conditioning, Prompt, Selection, SerializedTensor, TrainingGroup, WeightVersion
from common.models.cogvideox import ModelFolder, open_model
from common.weights.tensor_file import TensorStream
from common.weights.tensors import tensor_entry, to_array, whole_digest
from learner.learner import Learner
from tests.support.tiny import CHANNELS, TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline

LATENT = (3, CHANNELS, 12, 16)  # F, C, h, w of 9 frames of 48 x 64 pixels


def tiny_model(folder: Path, **overrides: Any) -> ModelFolder:
    """A model with one block of two heads. The folder is created once."""
    if not folder.exists():
        tiny_pipeline(folder, **({"num_layers": 1} | overrides))
    return open_model(folder)


def tiny_config(algorithm: Mapping[str, Any] | None = None, **learner: Any) -> RunConfig:
    """A run of 2 groups per step, whose learning rate shows an effect within a few steps."""
    settings = {"batch_size": 2, "micro_batch": 2, "lr": 1e-3, "checkpoint_every": 1000} | learner
    flags = {f"learner.{name}": value for name, value in settings.items()}
    return load_config(flags=flags | {f"algorithm.{name}": value for name, value in (algorithm or {}).items()})


def brightness(clips: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """A reward with a gradient: each frame's mean level [n, F], times 1, 2, 1, 2 ... by the prompt's ordinal."""
    factors = torch.tensor([1.0 + prompt.ordinal % 2 for prompt in prompts])
    return clips.mean((2, 3, 4)) * factors[:, None]


def make_group(ordinal: int, gap: float = 0.25, lag: int = 0, kept: int = 2) -> TrainingGroup:
    """A group of random latents, a function of the ordinal; rewards 0.75, 0.5, ... of the `kept` candidates."""
    generator = torch.Generator().manual_seed(1000 + ordinal)

    def normal(*shape: int) -> SerializedTensor:
        return to_array(torch.randn(shape, generator=generator))

    return TrainingGroup(
        ordinal=ordinal,
        policy_version=0,
        selection=Selection(tuple(range(kept)), (gap,) * kept),
        rewards=tuple(0.75 - 0.25 * place for place in range(kept)),
        conditioning=Conditioning(normal(TEXT_LENGTH, TEXT_WIDTH), normal(1, *LATENT[1:])),
        latents=tuple(normal(*LATENT) for _ in range(kept)),
        lag=lag,
        prompt=Prompt(ordinal, f"prompt-{ordinal}", "a robot walks right"),
    )


class MemoryExchange:
    """The learner's side of an exchange: an endless row of groups, and a list of what was asked."""

    def __init__(self, per_step: int = 2, gap: float = 0.25, limit: int = 10**6, kept: int = 2) -> None:
        self.per_step, self.gap, self.limit, self.kept = per_step, gap, limit, kept
        self.log: list[tuple[Any, ...]] = []
        self.versions: list[WeightVersion] = []

    def lease_batch(self, worker: str, step: int, count: int) -> Sequence[TrainingGroup]:
        """Groups (step-1)·count .. step·count-1, in falling order: a batch is a set."""
        del worker
        if step > self.limit:
            return ()
        ordinals = range(step * count - 1, (step - 1) * count - 1, -1)
        return [make_group(ordinal, self.gap, kept=self.kept) for ordinal in ordinals]

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

    def record_checkpoint(self, step: int) -> None:
        """Record the call."""
        self.log.append(("mark", step))

    def rollback(self, step: int) -> None:
        """Record the call."""
        self.log.append(("rollback", step))


def policy_state(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of the policy's tensors, whole, on rank 0. Collective."""
    return learner.engine.collect(learner.reference.policy, lambda stream: dict(stream.tensors)) or {}


def reference_digest(learner: Learner) -> str:
    """Digest of the reference's tensors under the policy's names: the policy's right after a refresh. Collective."""

    def digest(stream: TensorStream) -> str:
        return whole_digest(tensor_entry(name, tensor) for name, tensor in stream.tensors)

    return learner.engine.collect(learner.reference.parameters, digest) or ""
