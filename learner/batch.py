"""The learner's batch: training pairs stacked to tensors, cut into parts, and shared with the other ranks.

Symbols of the shapes: n pairs, F latent frames, C channels, h x w latent size, L text tokens, D text width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import distributed

from common.messages import TrainingPair
from common.weights.tensors import from_array
from learner.engines.base import Engine


@dataclass(frozen=True)
class PairBatch:
    """n training pairs, by rising ordinal. Made by `collate`."""

    ordinals: tuple[int, ...]
    winner: torch.Tensor  # [n, F, C, h, w], x0, VAE-scaled, the sampler's dtype
    loser: torch.Tensor  # the same
    prompt_embeds: torch.Tensor  # [n, L, D]; where winner and loser have captions of their own, [n, 2, L, D]
    image_latent: torch.Tensor | None  # [n, 1, C, h, w], or [n, 2, 1, C, h, w]; None for text-to-video models
    gap: torch.Tensor  # float32 [n], >= 0
    rewards: torch.Tensor  # float32 [n, 2]: R~w, R~l in [0, 1]
    lag: torch.Tensor  # float32 [n], pushes

    def __len__(self) -> int:
        return len(self.ordinals)

    @cached_property
    def alone(self) -> bool:
        """Whether every pair is a clip against itself, under one condition: then e(l) is e(w)."""
        conditions = [(self.prompt_embeds, 3), (self.image_latent, 5)]
        own = [each for each, shared in conditions if each is not None and each.ndim > shared]
        sides = [(self.winner, self.loser), *((each[:, 0], each[:, 1]) for each in own)]
        return all(torch.equal(one, other) for one, other in sides)

    def part(self, start: int, stop: int) -> PairBatch:
        """Pairs start .. stop-1."""
        cut = {name: tensor[start:stop] for name, tensor in self.tensors().items()}
        return replace(self, ordinals=self.ordinals[start:stop], **cut)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by field name; the image latent only where there is one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def collate(pairs: Sequence[TrainingPair]) -> PairBatch:
    """Stack leased pairs, sorted by ordinal: the batch is a set, whatever order the exchange gave it in."""
    ordered = sorted(pairs, key=lambda one: one.pair.ordinal)
    images = [one.conditioning.image_latent for one in ordered]
    return PairBatch(
        tuple(one.pair.ordinal for one in ordered),
        torch.stack([from_array(one.winner_latents) for one in ordered]),
        torch.stack([from_array(one.loser_latents) for one in ordered]),
        torch.stack([from_array(one.conditioning.prompt_embeds) for one in ordered]),
        torch.stack([from_array(image) for image in images if image is not None]) if images[0] is not None else None,
        torch.tensor([one.pair.gap for one in ordered]),
        torch.tensor([[one.pair.winner_reward, one.pair.loser_reward] for one in ordered]),
        torch.tensor([float(one.lag) for one in ordered]),
    )


def share(pairs: PairBatch | None, engine: Engine) -> PairBatch | None:
    """Rank 0's pairs on every rank (None when it has none): a JSON header, then the tensors. All ranks call it."""
    if engine.world == 1:
        return pairs
    device = engine.device
    header = _share_header(pairs, device)
    if header is None:
        return None
    tensors: dict[str, torch.Tensor | None] = {"image_latent": None}
    for name, (dtype, shape) in header["tensors"].items():
        own = (
            pairs.tensors()[name].to(device)
            if pairs
            else torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        )
        distributed.broadcast(own, 0)
        tensors[name] = own.cpu()
    return PairBatch(tuple(header["ordinals"]), **tensors)  # type: ignore[arg-type]


def _share_header(pairs: PairBatch | None, device: torch.device | str) -> dict | None:
    """Ordinals, dtypes and shapes from rank 0; None when it has no pairs."""
    data = b""
    if pairs is not None:
        layout = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in pairs.tensors().items()}
        data = json.dumps({"ordinals": pairs.ordinals, "tensors": layout}).encode()
    length = torch.tensor([len(data)], device=device)
    distributed.broadcast(length, 0)
    if not length.item():
        return None
    body = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
    if data:
        body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    distributed.broadcast(body, 0)
    return json.loads(bytes(body.tolist()))
