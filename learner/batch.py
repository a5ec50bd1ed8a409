"""The learner's batch: selected groups stacked into tensors, sliced, and broadcast to all ranks.

Shapes: n groups, k selected candidates, F latent frames, C channels, h x w latent size, L text tokens, D
text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import msgpack
import torch
from torch import distributed

from common.messages import Prompt, Purpose, SerializedTensor, TrainingGroup
from common.weights.tensors import from_array
from learner.engines.base import Engine


@dataclass(frozen=True)
class Batch:
    """n groups, sorted by ordinal. Built by `collate`."""

    ordinals: tuple[int, ...]
    latents: torch.Tensor  # x0 [n, k, F, C, h, w], VAE-scaled, in the sampler's dtype
    prompt_embeds: torch.Tensor  # [n, L, D], or [n, k, L, D] with one caption per candidate
    image_latent: torch.Tensor | None  # [n, 1, C, h, w], or [n, k, 1, C, h, w]; None for text-to-video models
    weights: torch.Tensor  # float32 [n, k], `Selection.weights`
    rewards: torch.Tensor  # float32 [n, k], R~ in [0, 1]
    lag: torch.Tensor  # float32 [n], pushes
    prompts: tuple[Prompt, ...] = ()  # [n]; `collate` sets them

    def __len__(self) -> int:
        return len(self.ordinals)

    def part(self, start: int, stop: int) -> Batch:
        """The slice of groups start .. stop-1."""
        cut = {name: tensor[start:stop] for name, tensor in self.tensors().items()}
        return replace(self, ordinals=self.ordinals[start:stop], prompts=self.prompts[start:stop], **cut)

    def to(self, device: torch.device | str) -> Batch:
        """A copy on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by field name, without the image latent if it is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def collate(groups: Sequence[TrainingGroup]) -> Batch:
    """Stack leased groups into a batch, sorted by ordinal so that the exchange's order does not matter.

    Raises `ValueError` if the groups have different numbers of selected candidates, or only some an image latent.
    """
    ordered = sorted(groups, key=lambda one: one.ordinal)
    kept = {len(one.latents) for one in ordered}
    if len(kept) > 1:
        raise ValueError(f"the groups of one batch keep {sorted(kept)} candidates; all must keep the same number")
    images = [_of_kept(one.conditioning.image_latent, 5, one) for one in ordered if one.conditioning.image_latent]
    if images and len(images) < len(ordered):
        lacking = [one.ordinal for one in ordered if not one.conditioning.image_latent]
        raise ValueError(f"groups {lacking} have no image latent, the others of the batch have one")
    return Batch(
        ordinals=tuple(one.ordinal for one in ordered),
        latents=torch.stack([torch.stack([from_array(array) for array in one.latents]) for one in ordered]),
        prompt_embeds=torch.stack([_of_kept(one.conditioning.prompt_embeds, 3, one) for one in ordered]),
        image_latent=torch.stack(images) if images else None,
        weights=torch.tensor([one.selection.weights for one in ordered]),
        rewards=torch.tensor([one.rewards for one in ordered]),
        lag=torch.tensor([float(one.lag) for one in ordered]),
        prompts=tuple(one.prompt for one in ordered),
    )


def _of_kept(condition: SerializedTensor, dimensions: int, group: TrainingGroup) -> torch.Tensor:
    """The condition as a tensor; with one entry per candidate (`dimensions` dimensions), only the selected ones."""
    tensor = from_array(condition)
    return tensor[list(group.selection.candidates)] if tensor.ndim == dimensions else tensor


def broadcast_batch(batch: Batch | None, engine: Engine) -> Batch | None:
    """Broadcast rank 0's batch to all ranks, as a header and tensors. None if rank 0 has none. Collective."""
    if engine.world == 1:
        return batch
    device = engine.device
    header = _broadcast_header(batch, device)
    if header is None:
        return None
    tensors: dict[str, torch.Tensor | None] = {"image_latent": None}
    for name, (dtype, shape) in header["tensors"].items():
        own = (
            batch.tensors()[name].to(device)
            if batch
            else torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        )
        distributed.broadcast(own, 0)
        tensors[name] = own.cpu()
    prompts = tuple(Prompt(**one | {"purpose": Purpose(one["purpose"])}) for one in header["prompts"])
    return Batch(tuple(header["ordinals"]), prompts=prompts, **tensors)  # type: ignore[arg-type]


def _broadcast_header(batch: Batch | None, device: torch.device | str) -> dict | None:
    """Broadcast ordinals, prompts, dtypes and shapes of rank 0's batch; None if it has no batch. Collective."""
    data = b""
    if batch is not None:
        layout = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in batch.tensors().items()}
        prompts = [asdict(prompt) for prompt in batch.prompts]
        data = msgpack.packb({"ordinals": batch.ordinals, "prompts": prompts, "tensors": layout}) or b""
    length = torch.tensor([len(data)], device=device)
    distributed.broadcast(length, 0)
    if not length.item():
        return None
    body = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
    if data:
        body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    distributed.broadcast(body, 0)
    return msgpack.unpackb(body.cpu().numpy().tobytes())
