"""Throughput of sampling, and the gain and cost of each shortcut: ``python -m benchmarks.sampling``.

```
   ours    Sampler: caption and first frame encoded once, N candidates in one batch, both captions in one call
   other   diffusers' pipeline as in its documentation, called N times
   limit   the operations that the model needs, at the rate of a large matrix product in the same run
```

Ours and other both end with the mp4 bytes of the same N clips. Every round has another prompt, so nothing is cached
between rounds. Shortcuts (`actors/acceleration.py`) are compared with ours without them.

In the toon world the cost in quality of each shortcut is measured too: the same prompts and seeds with and without it,
scored by the reward heads and the oracle. The change with its 95 % interval is part of the case's name; `ours` is the
mean.

``--model 5b-i2v --device cuda:0`` measures a published family at full size with random weights (no download). How much
a block cache skips depends on the weights, so these rows do not count for the targets there, and say why.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from PIL import Image

from actors.sampler import Sampler
from benchmarks import options
from benchmarks.device import Variant, is_cuda, matmul_peak, memory_rows, mfu_aims, mfu_row, operations
from benchmarks.harness import Aim, Report, Row, main, ratio
from benchmarks.options import model_flags, open_given, prompts_for
from benchmarks.random_models import TOON, RandomModel, sizes_of
from common.config import DIMENSIONS, RunConfig, load_config
from common.data.video import decode_clip, encode_mp4
from common.intervals import paired_interval
from common.messages import Prompt
from common.models.cogvideox import ModelFolder

N, ROUNDS, QUALITY_PROMPTS = 4, 5, 60
GUIDANCE = 3.0  # for the toon world; the large models use 6
INTERVAL = {"sampler.guidance_interval": "0.2,0.8"}
COMPILED = {"sampler.compile": True}
HALF = "half the steps"
SHORTCUTS: dict[str, dict[str, Any]] = {
    "guidance in 0.2..0.8": INTERVAL,
    "cache 0.05": {"sampler.cache_threshold": 0.05},
    "cache 0.15": {"sampler.cache_threshold": 0.15},
    HALF: {},
    "compiled": COMPILED,
    f"compiled, guidance in 0.2..0.8, {HALF}": COMPILED | INTERVAL,
}


def settings(given: argparse.Namespace, **more: Any) -> RunConfig:
    """The run's configuration: the model's own sizes, the given options, and `more` dotted keys."""
    flags = model_flags(given) | {"sampler.candidates": N}
    flags |= {f"sampler.{name}": getattr(given, name) for name in ("micro_batch", "steps", "guidance", "vae_tiling")}
    return load_config(flags=flags | more)


def shortened(given: argparse.Namespace, name: str) -> RunConfig:
    """`settings` with the shortcut that `name` names."""
    steps = {"sampler.steps": given.steps // 2} if HALF in name else {}
    return settings(given, **SHORTCUTS[name], **steps)


# The two implementations.


def ours(sampler: Sampler, prompt: Prompt, seeds: Sequence[int]) -> list[bytes]:
    """One mp4 clip per seed, by our sampler."""
    made = sampler.sample(prompt, sampler.encode(prompt), seeds, range(len(seeds)))
    return [candidate.clip for candidate in made]


def plain(pipe: Any, config: RunConfig, prompt: Prompt, seeds: Sequence[int]) -> list[bytes]:
    """One mp4 clip per seed, by the diffusers pipeline."""
    size, clips = config.model, []
    image = {} if prompt.image is None else {"image": Image.open(BytesIO(prompt.image)).convert("RGB")}
    for seed in seeds:
        frames = pipe(
            prompt=prompt.text, height=size.height, width=size.width, num_frames=size.frames,
            num_inference_steps=config.sampler.steps, guidance_scale=config.sampler.guidance, output_type="np",
            generator=torch.Generator().manual_seed(seed), **image,
            max_sequence_length=pipe.transformer.config.max_text_seq_length,
        ).frames[0]  # fmt: skip
        clips.append(encode_mp4((frames * 255).round().astype(np.uint8), size.fps))
    return clips


def open_pipeline(model: ModelFolder, config: RunConfig) -> Any:
    """The diffusers pipeline with the model's parts on the device, without progress bars."""
    where = (config.model.dtype, config.model.device)
    kind: Any = CogVideoXImageToVideoPipeline if model.image_conditioned else CogVideoXPipeline
    pipe = kind(
        tokenizer=model.load_tokenizer(), text_encoder=model.load_text_encoder(*where), vae=model.load_vae(*where),
        transformer=model.load_transformer(*where), scheduler=model.make_scheduler(config.sampler.scheduler),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if config.sampler.vae_tiling:
        pipe.vae.enable_tiling()
    return pipe


# The report.


Clips = Callable[[Prompt, Sequence[int]], list[bytes]]


def sampling(model: ModelFolder, config: RunConfig) -> Variant[Clips]:
    """Our sampler as a variant to measure."""
    return Variant(config.model.device, lambda: partial(ours, Sampler(model, config)))


def alternate(given: argparse.Namespace, model: ModelFolder, *ways: Variant[Clips]) -> None:
    """Rounds of N candidates, each round with all variants in turn."""
    for number, prompt in enumerate(prompts_for(given, model).heldout(given.rounds + 1, 0)):
        seeds = range(N * number, N * (number + 1))
        for way in ways:
            way.round(lambda make, p=prompt, s=seeds: make(p, s))


def against_plain(given: argparse.Namespace, model: ModelFolder) -> tuple[list[Row], list[Aim]]:
    """Compare ours with the pipeline, in alternating rounds."""
    config = settings(given)
    mine = sampling(model, config)
    theirs: Variant[Clips] = Variant(given.device, lambda: partial(plain, open_pipeline(model, config), config))
    peak = matmul_peak(given.device, getattr(torch, config.model.dtype))
    alternate(given, model, mine, theirs)
    rates, others = mine.rates(N), theirs.rates(N)
    gain, (needed, _) = ratio(rates, others), operations(sizes_of(model), config)
    case = f"{N} candidates, exact; other: the pipeline {N} times"
    speed = Row(case, "videos/s", median(rates), median(others), peak / needed, gain)
    use = mfu_row(given.device, peak, needed, rates, others)
    least = 1.2 if is_cuda(given.device) else 1.5
    aim = Aim("exact sampling against the pipeline", gain.median, f">= {least}", gain.median >= least)
    return [speed, use, *memory_rows(mine, theirs)], [aim, *mfu_aims(given.device, use)]


PromptScores = dict[str, list[float]]  # reward and oracle scores, one per prompt


def shortcut(given: argparse.Namespace, model: ModelFolder, name: str, before: PromptScores) -> list[Row]:
    """Compare a shortcut with exact sampling: its speed, and its cost if the scores of exact clips, `before`, exist."""
    quick, exact = sampling(model, shortened(given, name)), sampling(model, settings(given))
    alternate(given, model, quick, exact)
    mine, theirs = quick.rates(N), exact.rates(N)
    case = f"{name}; other: exact{'' if is_representative(model, name) else '; random weights skip as they please'}"
    rows = [Row(case, "videos/s", median(mine), median(theirs), None, ratio(mine, theirs))]
    return rows + (cost(before, judged(given, model, quick.subject), name) if before else [])


def is_representative(model: ModelFolder, name: str) -> bool:
    """Whether a shortcut's speed is the same with real weights."""
    return not (isinstance(model, RandomModel) and "cache" in name)


def shortcut_aim(exact: Aim, gains: Mapping[str, float]) -> Aim:
    """The target for the fastest shortcut against the pipeline: its gain times that of exact sampling."""
    name = max(gains, key=lambda one: gains[one])
    value = exact.value * gains[name]
    return Aim(f"sampling against the pipeline, {name}", value, ">= 2", value >= 2)


def cost(before: PromptScores, after: PromptScores, shortcut_name: str) -> list[Row]:
    """The change of the mean reward and of the oracle's scores, with 95 % intervals."""
    rows = []
    for name in before:
        change = paired_interval(before[name], after[name])
        spread = f"{change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        rows.append(Row(f"{shortcut_name}: {name} {spread}; other: exact", "points", float(np.mean(after[name])),
                        float(np.mean(before[name]))))  # fmt: skip
    return rows


def judged(given: argparse.Namespace, model: ModelFolder, make: Clips) -> PromptScores:
    """Reward and oracle scores of one clip per held-out prompt, always with the same seeds."""
    from common.toon.oracle import judge  # noqa: PLC0415 - only for the toon world
    from common.toon.prompts import shot_of  # noqa: PLC0415
    from rewarders.head_files import load_heads  # noqa: PLC0415

    asked = prompts_for(given, model).heldout(given.quality, 0)
    clips = [decode_clip(make(prompt, [seed])[0]) for seed, prompt in enumerate(asked)]
    heads = [head.score(clips, asked) for head in load_heads("toon") if head.dimension in DIMENSIONS]
    found: PromptScores = {"reward": np.mean(heads, 0).tolist()}
    for clip, prompt in zip(clips, asked, strict=True):
        for name, value in asdict(judge(clip, shot_of(prompt))).items():
            found.setdefault(f"oracle's {name}", []).append(value)
    return found


def measure(given: argparse.Namespace) -> Report:
    """Measure exact sampling against the pipeline, then every shortcut."""
    model = open_given(given)
    rows, aims = against_plain(given, model)
    gains: dict[str, float] = {}
    before: PromptScores = {}
    if given.model == TOON and given.quality and given.shortcuts:
        before = judged(given, model, sampling(model, settings(given)).subject)
    for name in given.shortcuts:
        speed, *costs = shortcut(given, model, name, before)
        rows += [speed, *costs]
        if speed.ratio is not None and is_representative(model, name):
            gains[name] = speed.ratio.median
    if gains and is_cuda(given.device):
        aims.append(shortcut_aim(aims[0], gains))
    return Report("sampling", rows, aims, ("torch", "diffusers", "transformers"), given.device)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    *options.OPTIONS,
    ("--rounds", {"type": int, "default": ROUNDS, "help": f"rounds after the warm-up (default: {ROUNDS})"}),
    ("--steps", {"type": int, "default": 10, "help": "denoising steps (default: 10)"}),
    ("--guidance", {"type": float, "default": GUIDANCE, "help": f"classifier-free guidance (default: {GUIDANCE})"}),
    ("--micro-batch", {"type": int, "default": N, "help": f"candidates denoised together (default: {N})"}),
    ("--vae-tiling", {"action": "store_true", "help": "VAE tiling in both: less memory at large sizes"}),
    ("--shortcuts", {"nargs": "*", "default": list(SHORTCUTS), "choices": list(SHORTCUTS), "help": "which to measure"}),
    ("--quality", {"type": int, "default": QUALITY_PROMPTS, "help": "held-out prompts for the cost; 0: only speed"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
