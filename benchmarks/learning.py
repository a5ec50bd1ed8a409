"""How fast pairs are learned from, and what memory a step keeps: ``python -m benchmarks.learning``.

```
   ours    Learner: latents and embeddings come from the ledger; winner and loser in one forward
   other   a Diffusion-DPO step as one writes it: T5 and VAE encode in the step, four passes, a copied reference
```

Both take full optimizer steps (forward, backward, AdamW) on batches of the same pairs, in alternating rounds.

The last rows show what OnlineVPO (Zhang et al. 2024, section 1) says against reward gradients (ReFL, Xu et al. 2023):
bytes that autograd keeps for the backward pass of one clip, of the preference loss and of a reward's gradient through
the decoded clip, over frames and resolution. Counted, not estimated: every tensor that is saved, once.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch.nn.functional import logsigmoid

from benchmarks.report import Aim, Report, Row, main, ratio
from benchmarks.sampling import seconds
from common.config import RunConfig, load_config
from common.diffusion import NoiseSchedule
from common.models import ModelFolder, decode_latents, encode_image, encode_text, encode_video, open_model, predict_v
from learner.pairs import Pairs
from learner.train import Learner

PAIRS, ROUNDS = 8, 5
SIZES = ((9, 48, 64), (9, 96, 128), (17, 96, 128))  # frames, height, width
MIB = 1 << 20


@dataclass(frozen=True)
class Clips:
    """A batch of pairs as a data loader gives them: float pixels in [-1, 1]."""

    winner: torch.Tensor  # [n, frames, 3, H, W]
    loser: torch.Tensor
    image: torch.Tensor  # [n, 3, H, W]
    texts: list[str]


def clips(config: RunConfig, count: int) -> Clips:
    """Noise of the right shape: how fast a step is does not depend on what it shows."""
    size, generator = config.model, torch.Generator().manual_seed(0)
    shape = (count, size.frames, 3, size.height, size.width)
    winner, loser = (torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2))
    return Clips(winner, loser, winner[:, 0], [f"a robot walks {place}" for place in range(count)])


class Plain:
    """One step of Diffusion-DPO, all in it."""

    def __init__(self, model: ModelFolder, config: RunConfig) -> None:
        size = config.model
        self.config, self.text_length = config, model.max_text_length
        self.schedule = NoiseSchedule.from_config(model.scheduler_config)
        self.policy: Any = model.load_transformer(size.dtype, size.device).train()
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.vae, self.tokenizer = model.load_vae(size.dtype, size.device), model.load_tokenizer()
        self.text_encoder = model.load_text_encoder(size.dtype, size.device)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=config.learner.lr, weight_decay=0.0)

    def step(self, batch: Clips) -> float:
        """The loss of a step that is taken."""
        with torch.no_grad():
            text = encode_text(self.tokenizer, self.text_encoder, batch.texts, self.text_length)
            image = encode_image(self.vae, batch.image)
            winner, loser = encode_video(self.vae, batch.winner), encode_video(self.vae, batch.loser)
        noise, t = torch.randn_like(winner), torch.randint(0, self.schedule.steps, (len(winner),))

        def error(transformer: Any, x0: torch.Tensor) -> torch.Tensor:
            v = predict_v(transformer, self.schedule.add_noise(x0, noise, t), image, t, text)
            return (v - self.schedule.v_target(x0, noise, t)).square().flatten(1).mean(1)

        with torch.no_grad():
            fixed = error(self.reference, winner) - error(self.reference, loser)
        moved = error(self.policy, winner) - error(self.policy, loser)
        loss = -logsigmoid(-0.5 * self.config.learner.beta * (moved - fixed)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.learner.clip_norm)
        self.optimizer.step()
        return loss.item()


def encoded(model: ModelFolder, config: RunConfig, batch: Clips) -> Pairs:
    """The same pairs as the learner gets them: encoded once, when they were sampled."""
    size, count = config.model, len(batch.texts)
    vae, encoder = model.load_vae(size.dtype, size.device), model.load_text_encoder(size.dtype, size.device)
    with torch.no_grad():
        return Pairs(
            ordinals=tuple(range(count)),
            winner=encode_video(vae, batch.winner),
            loser=encode_video(vae, batch.loser),
            prompt_embeds=encode_text(model.load_tokenizer(), encoder, batch.texts, model.max_text_length),
            image_latent=encode_image(vae, batch.image),
            gap=torch.full((count,), 0.1),
            rewards=torch.full((count, 2), 0.5),
            lag=torch.zeros(count),
        )


def steps(given: argparse.Namespace, model: ModelFolder) -> tuple[Row, Aim]:
    """Pairs per second of both."""
    config = load_config(
        flags={
            "model.path": given.model, "model.device": given.device, "learner.pairs_per_step": PAIRS,
            "learner.micro_batch": given.micro_batch, "learner.lr": 1e-6,
        }
    )  # fmt: skip
    batch = clips(config, PAIRS)
    pairs, plain = encoded(model, config, batch), Plain(model, config)
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(model, config, Path(folder))
        try:
            times = [
                (
                    seconds(given.device, lambda: learner.optimize(pairs)),
                    seconds(given.device, lambda: plain.step(batch)),
                )
                for _ in range(given.rounds + 1)
            ]
        finally:
            learner.close()
    mine, theirs = ([PAIRS / taken for taken in column] for column in zip(*times[1:], strict=True))
    gain = ratio(mine, theirs)
    words = f"steps of {PAIRS} pairs; other: all in the step"
    row = Row(words, "pairs/s", median(mine), median(theirs), None, gain)
    return row, Aim("pairs/s against a plain Diffusion-DPO step", gain.median, ">= 2", gain.median >= 2)


# What a backward pass keeps.


def kept(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `forward`: every storage once, parameters left out."""
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()  # kept, so that no address is used twice
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def memory(model: ModelFolder, frames: int, height: int, width: int) -> Row:
    """One pair's preference loss, and ReFL's reward of one decoded prediction, under random weights.

    Learned positions, which fix the size, are left out. Float32, attention that keeps no matrix of scores.
    """
    config = model.transformer_config | {"use_learned_positional_embeddings": False}
    shape = replace(model, transformer_config=config).latent_shape(frames, height, width)
    transformer: Any = CogVideoXTransformer3DModel.from_config(config).train()  # type: ignore[union-attr]
    vae: Any = AutoencoderKLCogVideoX.from_config(model.vae_config)
    x_t, t = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)
    text = torch.zeros(1, model.max_text_length, config["text_embed_dim"])
    image = x_t[:, :1] if model.image_conditioned else None

    def v(count: int) -> torch.Tensor:
        given = (one if one is None else torch.cat([one] * count) for one in (x_t, image, t, text))
        return predict_v(transformer, *given)  # type: ignore[arg-type]

    def preference() -> torch.Tensor:
        return (v(2) - torch.empty_like(x_t)).square().mean()

    def reward_gradient() -> torch.Tensor:
        predicted = 0.5 * x_t - 0.5 * v(1)
        return decode_latents(vae, predicted).mean()  # what a reward model keeps comes on top of it

    ours, other = kept(preference) / MIB, kept(reward_gradient) / MIB
    words = f"{frames} frames of {height} x {width}: kept for a pair; other: for one clip of ReFL"
    return Row(words, "MiB", ours, other, None, ratio([other], [ours]))


def measure(given: argparse.Namespace, sizes: Sequence[tuple[int, int, int]] = SIZES) -> Report:
    """Speed, then memory."""
    model = open_model(given.model)
    row, aim = steps(given, model)
    rows = [row, *(memory(model, *size) for size in sizes)]
    return Report("learning", rows, [aim], ("torch", "diffusers", "deepspeed"))


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--model", {"default": "toon", "help": "'toon' or a CogVideoX image-to-video pipeline folder"}),
    ("--device", {"default": "cpu", "help": "cpu, cuda:0"}),
    ("--rounds", {"type": int, "default": ROUNDS, "help": f"after one that is not counted (default: {ROUNDS})"}),
    ("--micro-batch", {"type": int, "default": PAIRS, "help": f"pairs in one forward (default: {PAIRS})"}),
)


if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
