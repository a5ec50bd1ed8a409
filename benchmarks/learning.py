"""Speed and memory of an optimizer step: ``python -m benchmarks.learning``.

```
   ours    Learner: latents and embeddings come from the ledger; chosen and rejected in one forward
   other   a Diffusion-DPO step as one writes it: T5 and VAE encode in the step, four passes, a copied reference
```

Both take full optimizer steps (forward, backward, AdamW) on the same pairs in alternating rounds, with the same
micro-batches, adapters (``--train lora``) and activation checkpointing. Speed and memory do not depend on the content
of clips or weights, so clips are noise, and ``--model 5b-i2v`` is a published family at full size with random weights.

The last rows, for the toon model, show OnlineVPO's argument (Zhang et al. 2024, section 1) against reward gradients
(ReFL, Xu et al. 2023): the bytes that autograd saves for the backward pass of one clip, for the preference loss and for
a reward's gradient through the decoded clip, by frames and resolution. They are counted, not estimated: each saved
tensor once. The last of them, as in OnlineVPO's figure 7, are computed (`deploy/planning/memory.py`) for a published
model in bfloat16 with full checkpointing: what the backward pass of one pair needs, and that of one clip of ReFL.
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
from peft import LoraConfig as PeftLoraConfig
from torch.nn.functional import logsigmoid

from benchmarks import options
from benchmarks.device import Variant, is_cuda, matmul_peak, memory_rows, mfu_aims, mfu_row, operations
from benchmarks.harness import Aim, Report, Row, main, ratio
from benchmarks.options import model_flags, open_given
from benchmarks.random_models import TOON, sizes_of
from common.config import RunConfig, load_config
from common.models.cogvideox import (
    ModelFolder,
    decode_latents,
    encode_image,
    encode_text,
    encode_video,
    pad_front,
    predict_v,
)
from common.models.lora import peft_settings
from common.models.noise_schedule import NoiseSchedule
from common.models.shapes import front_padding
from deploy.planning.memory import GIGA, learner_bytes
from deploy.planning.model_sizes import family_sizes
from learner.batch import Batch
from learner.learner import Learner

ROUNDS = 5
PAIRS, FAMILY_PAIRS = 8, 2  # pairs per step, for the toon model and for others
SIZES = ((9, 48, 64), (9, 96, 128), (17, 96, 128))  # frames, height, width
FULL_SIZE_MODEL = "1.5-5b-i2v"  # takes clips of any size
FULL_SIZES = ((17, 240, 432), (65, 240, 432), (17, 480, 848), (65, 480, 848), (65, 720, 1280))
MIB = 1 << 20


def settings(given: argparse.Namespace) -> RunConfig:
    """The run's configuration. Defaults: the toon run's for the toon model; otherwise what fits on one GPU."""
    toon = given.model == TOON
    pairs = given.pairs or (PAIRS if toon else FAMILY_PAIRS)
    flags = model_flags(given) | options.checkpointing_flag(given) | {"learner.lr": 1e-6}
    flags["learner.train"] = given.train or ("full" if toon else "lora")
    flags["learner.micro_batch"] = given.micro_batch or (pairs if toon else 1)
    return load_config(flags=flags | {"learner.batch_size": pairs, "algorithm.name": "dpo"})


@dataclass(frozen=True)
class Clips:
    """A batch of pairs as from a data loader: float pixels in [-1, 1] on the CPU."""

    chosen: torch.Tensor  # [n, frames, 3, H, W]
    rejected: torch.Tensor
    image: torch.Tensor  # [n, 3, H, W]
    texts: list[str]

    def parts(self, size: int) -> list[Clips]:
        """Split into parts of at most `size` pairs."""
        cuts = [slice(start, start + size) for start in range(0, len(self.texts), size)]
        return [Clips(self.chosen[cut], self.rejected[cut], self.image[cut], self.texts[cut]) for cut in cuts]


def clips(config: RunConfig, count: int) -> Clips:
    """Noise of the right shape."""
    size, generator = config.model, torch.Generator().manual_seed(0)
    shape = (count, size.frames, 3, size.height, size.width)
    chosen, rejected = (torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2))
    return Clips(chosen, rejected, chosen[:, 0], [f"a robot walks {place}" for place in range(count)])


class Encoders:
    """T5 and VAE on the device."""

    def __init__(self, model: ModelFolder, config: RunConfig) -> None:
        size = config.model
        self._model, self._device, self._tokenizer = model, size.device, model.load_tokenizer()
        self._vae = model.load_vae(size.dtype, size.device)
        self._text_encoder = model.load_text_encoder(size.dtype, size.device)

    @torch.no_grad()
    def __call__(self, batch: Clips) -> Batch:
        """The training data of a step."""
        count, device = len(batch.texts), self._device
        conditioned = self._model.image_conditioned
        return Batch(
            ordinals=tuple(range(count)),
            latents=torch.stack(
                [encode_video(self._vae, clip.to(device)) for clip in (batch.chosen, batch.rejected)], 1
            ),
            prompt_embeds=encode_text(self._tokenizer, self._text_encoder, batch.texts, self._model.max_text_length),
            image_latent=encode_image(self._vae, batch.image.to(device)) if conditioned else None,
            weights=torch.full((count, 2), 0.1),
            rewards=torch.full((count, 2), 0.5),
            lag=torch.zeros(count),
        )


class PlainDPO:
    """A plain implementation of Diffusion-DPO, which encodes clips within the step."""

    def __init__(self, model: ModelFolder, config: RunConfig) -> None:
        self.config, self.encoders = config, Encoders(model, config)
        self.beta: float = config.algorithm.model_dump()["beta"]
        self.schedule = NoiseSchedule.from_config(model.scheduler_config)
        self.policy: Any = model.load_transformer(config.model.dtype, config.model.device).train()
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        if config.learner.train == "lora":
            self.policy.add_adapter(PeftLoraConfig(**peft_settings(config.learner.lora)))
        if options.checkpointed(config):
            self.policy.enable_gradient_checkpointing()
        self._trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self._trained, lr=config.learner.lr, weight_decay=0.0)

    def step(self, batch: Clips) -> float:
        """Take one optimizer step. Returns the loss."""
        rules, total = self.config.learner, 0.0
        self.optimizer.zero_grad()
        for part in batch.parts(rules.micro_batch):
            loss = self._losses(self.encoders(part)).sum() / len(batch.texts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self._trained, rules.clip_norm)
        self.optimizer.step()
        return total

    def _losses(self, pairs: Batch) -> torch.Tensor:
        padding = front_padding(self.policy.config, pairs.latents.shape[2])
        chosen, rejected = (pad_front(clips, padding) for clips in pairs.latents.unbind(1))
        noise = torch.randn_like(chosen)
        t = torch.randint(0, self.schedule.steps, (len(pairs),), device=noise.device)

        def error(transformer: Any, x0: torch.Tensor) -> torch.Tensor:
            x_t = self.schedule.add_noise(x0, noise, t).to(x0.dtype)
            v = predict_v(transformer, x_t, pairs.image_latent, t, pairs.prompt_embeds)
            squares = (v.float() - self.schedule.v_target(x0, noise, t)).square()
            return squares[:, padding:].flatten(1).mean(1)

        with torch.no_grad():
            fixed = error(self.reference, chosen) - error(self.reference, rejected)
        moved = error(self.policy, chosen) - error(self.policy, rejected)
        return -logsigmoid(-0.5 * self.beta * (moved - fixed))


def encoded(model: ModelFolder, config: RunConfig, batch: Clips) -> Batch:
    """The same pairs as the learner gets them: encoded once, when they were sampled, in host memory."""
    encoders = Encoders(model, config)
    parts = [encoders(part).to("cpu").tensors() for part in batch.parts(1)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Batch(tuple(range(len(parts))), **({"image_latent": None} | whole))  # type: ignore[arg-type]


def steps(given: argparse.Namespace, model: ModelFolder) -> tuple[list[Row], list[Aim]]:
    """Pairs per second and MFU of both, and, on a GPU, their memory."""
    config = settings(given)
    count = config.learner.batch_size
    batch = clips(config, count)
    pairs = encoded(model, config, batch)
    peak = matmul_peak(given.device, getattr(torch, config.model.dtype))
    with tempfile.TemporaryDirectory() as folder:
        ours = Variant(given.device, lambda: Learner(model, config, Path(folder)))
        try:
            plain = Variant(given.device, lambda: PlainDPO(model, config))
            for _ in range(given.rounds + 1):
                ours.round(lambda learner: learner.optimize(pairs))
                plain.round(lambda one: one.step(batch))
        finally:
            ours.subject.close()
    mine, theirs = ours.rates(count), plain.rates(count)
    gain, (_, needed) = ratio(mine, theirs), operations(sizes_of(model), config)
    case = f"steps of {count} pairs, {config.learner.train}; other: all in the step"
    speed = Row(case, "pairs/s", median(mine), median(theirs), count * peak / needed, gain)
    use = mfu_row(given.device, peak, needed / count, mine, theirs)
    aim = Aim("pairs/s against a plain Diffusion-DPO step", gain.median, ">= 2", gain.median >= 2)
    return [speed, use, *memory_rows(ours, plain)], [aim, *memory_aims(ours, plain), *mfu_aims(given.device, use)]


def memory_aims(ours: Variant[Any], plain: Variant[Any]) -> list[Aim]:
    """On a GPU, the target for the peak memory; none on a CPU."""
    if not is_cuda(ours.device):
        return []
    share = ours.peak / plain.peak
    return [Aim("peak memory against a plain Diffusion-DPO step", share, "<= 0.6", share <= 0.6)]


# Memory for the backward pass.


def saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `forward`: each storage once, without parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()  # kept alive, so that no address is reused
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def memory(model: ModelFolder, frames: int, height: int, width: int) -> Row:
    """Saved bytes of one pair's preference loss, and of ReFL's reward of one decoded prediction, with random weights.

    Without learned positions, which would fix the size. In float32, with attention that does not save its scores.
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
        return decode_latents(vae, predicted).mean()  # the reward model would save more on top

    ours, other = saved_bytes(preference) / MIB, saved_bytes(reward_gradient) / MIB
    case = f"{frames} frames of {height} x {width}: kept for a pair; other: for one clip of ReFL"
    return Row(case, "MiB", ours, other, None, ratio([other], [ours]))


def computed_memory(frames: int, height: int, width: int) -> Row:
    """Bytes of the backward pass of one group, as `douga plan` computes them, for `FULL_SIZE_MODEL`."""
    sizes = family_sizes(FULL_SIZE_MODEL)
    tokens = sizes.tokens(sizes.latent_shape(frames, height, width))

    def needed(algorithm: str) -> float:
        flags = {"model.frames": frames, "model.height": height, "model.width": width, "model.dtype": "bfloat16"}
        flags |= {"algorithm.name": algorithm, "learner.gradient_checkpointing": "full"}
        config = load_config(flags=flags | {"learner.batch_size": 1, "learner.micro_batch": 1})
        return learner_bytes(config, sizes, tokens)[1]["activations"] / GIGA

    ours, other = needed("dpo"), needed("refl")
    case = f"computed, {sizes.name}, {frames} frames of {height} x {width}: for a pair; other: for one clip of ReFL"
    return Row(case, "GB", ours, other, None, ratio([other], [ours]))


def measure(given: argparse.Namespace, sizes: Sequence[tuple[int, int, int]] = SIZES) -> Report:
    """Measure speed, then saved bytes for the clip `sizes` (toon model only)."""
    model = open_given(given)
    rows, aims = steps(given, model)
    if given.model == TOON:
        rows += [memory(model, *size) for size in sizes] + [computed_memory(*size) for size in FULL_SIZES]
    return Report("learning", rows, aims, ("torch", "diffusers", "peft", "deepspeed"), given.device)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    *options.OPTIONS,
    options.CHECKPOINTING,
    ("--train", {"choices": ["lora", "full"], "help": "adapters, or all weights (default: toon full, others lora)"}),
    ("--rounds", {"type": int, "default": ROUNDS, "help": f"rounds after the warm-up (default: {ROUNDS})"}),
    ("--pairs", {"type": int, "help": f"pairs per optimizer step (default: toon {PAIRS}, others {FAMILY_PAIRS})"}),
    ("--micro-batch", {"type": int, "help": "pairs in one forward (default: toon all, others 1)"}),
)


if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
