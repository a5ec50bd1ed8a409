"""How fast candidates are sampled, and what each shortcut gives and costs: ``python -m benchmarks.sampling``.

```
   ours    Sampler: caption and first frame encoded once, N candidates in one batch, both captions in one call
   other   diffusers' pipeline as its documentation has it, called N times
   limit   the operations that the model needs, at the rate that a large matrix product reaches in the same run
```

All three end in mp4 bytes of the same N clips. Every round has a prompt of its own, so nothing is cached from the round
before. A shortcut (`actors/acceleration.py`) stands beside ours without it.

On the toon world every shortcut's cost is measured too: the same prompts and seeds with and without it, scored by the
reward heads and by the oracle; the change with its 95 % interval stands in the case's words, its mean in `ours`.

``--model 5b-i2v --device cuda:0`` measures a published family at its full size, with random weights (nothing is
fetched). How much a cache skips does depend on weights: those rows are left out of the aims there, and say why.
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
from benchmarks.device import Way, is_cuda, matmul_peak, memory_rows, mfu_aims, mfu_row, operations
from benchmarks.harness import Aim, Report, Row, main, ratio
from benchmarks.options import model_flags, open_given, prompts_for
from benchmarks.random_models import TOON, RandomModel, sizes_of
from common.bootstrap import paired_bootstrap
from common.config import DIMENSIONS, RunConfig, load_config
from common.data.video import decode_clip, encode_mp4
from common.messages import Prompt
from common.models.cogvideox import ModelFolder

N, ROUNDS, QUALITY_PROMPTS = 4, 5, 60
GUIDANCE = 3.0  # on the toon world; the large models' own is 6
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
    """The toon run's sizes for the toon model, the family's own for others; `more` are dotted keys."""
    flags = model_flags(given) | {"sampler.candidates": N}
    flags |= {f"sampler.{name}": getattr(given, name) for name in ("micro_batch", "steps", "guidance", "vae_tiling")}
    return load_config(flags=flags | more)


def shortened(given: argparse.Namespace, words: str) -> RunConfig:
    """`settings` with a shortcut."""
    steps = {"sampler.steps": given.steps // 2} if HALF in words else {}
    return settings(given, **SHORTCUTS[words], **steps)


# The two ways.


def ours(sampler: Sampler, prompt: Prompt, seeds: Sequence[int]) -> list[bytes]:
    """N clips, mp4."""
    made = sampler.sample(prompt, sampler.encode(prompt), seeds, range(len(seeds)))
    return [candidate.clip for candidate in made]


def plain(pipe: Any, config: RunConfig, prompt: Prompt, seeds: Sequence[int]) -> list[bytes]:
    """The same with the pipeline alone."""
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
    """The family's pipeline from the model's parts, quiet, on the device."""
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


def sampling(model: ModelFolder, config: RunConfig) -> Way[Clips]:
    """Ours, on the device."""
    return Way(config.model.device, lambda: partial(ours, Sampler(model, config)))


def alternate(given: argparse.Namespace, model: ModelFolder, *ways: Way[Clips]) -> None:
    """Rounds of N candidates, by one way after the other."""
    for number, prompt in enumerate(prompts_for(given, model).heldout(given.rounds + 1, 0)):
        seeds = range(N * number, N * (number + 1))
        for way in ways:
            way.round(lambda make, p=prompt, s=seeds: make(p, s))


def against_plain(given: argparse.Namespace, model: ModelFolder) -> tuple[list[Row], list[Aim]]:
    """Ours beside the pipeline, in alternating rounds."""
    config = settings(given)
    mine = sampling(model, config)
    theirs: Way[Clips] = Way(given.device, lambda: partial(plain, open_pipeline(model, config), config))
    peak = matmul_peak(given.device, getattr(torch, config.model.dtype))
    alternate(given, model, mine, theirs)
    rates, others = mine.rates(N), theirs.rates(N)
    gain, (needed, _) = ratio(rates, others), operations(sizes_of(model), config)
    words = f"{N} candidates, exact; other: the pipeline {N} times"
    speed = Row(words, "videos/s", median(rates), median(others), peak / needed, gain)
    use = mfu_row(given.device, peak, needed, rates, others)
    least = 1.2 if is_cuda(given.device) else 1.5
    aim = Aim("exact sampling against the pipeline", gain.median, f">= {least}", gain.median >= least)
    return [speed, use, *memory_rows(mine, theirs)], [aim, *mfu_aims(given.device, use)]


Verdicts = dict[str, list[float]]  # reward and oracle's figures, of each prompt's clip


def shortcut(given: argparse.Namespace, model: ModelFolder, words: str, before: Verdicts) -> list[Row]:
    """A shortcut beside ours without it: its speed, and where exact clips were judged `before` its cost."""
    quick, exact = sampling(model, shortened(given, words)), sampling(model, settings(given))
    alternate(given, model, quick, exact)
    mine, theirs = quick.rates(N), exact.rates(N)
    case = f"{words}; other: exact{'' if telling(model, words) else '; random weights skip as they please'}"
    rows = [Row(case, "videos/s", median(mine), median(theirs), None, ratio(mine, theirs))]
    return rows + (cost(before, judged(given, model, quick.thing), words) if before else [])


def telling(model: ModelFolder, words: str) -> bool:
    """Whether a shortcut is as fast with the real weights."""
    return not (isinstance(model, RandomModel) and "cache" in words)


def shortcut_aim(exact: Aim, gains: Mapping[str, float]) -> Aim:
    """The fastest shortcut against the pipeline: the product of its gain and that of exact sampling."""
    words = max(gains, key=lambda one: gains[one])
    value = exact.value * gains[words]
    return Aim(f"sampling against the pipeline, {words}", value, ">= 2", value >= 2)


def cost(before: Verdicts, after: Verdicts, words: str) -> list[Row]:
    """The change of the mean reward and of the oracle's figures, with 95 % intervals."""
    rows = []
    for name in before:
        change = paired_bootstrap(before[name], after[name])
        spread = f"{change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        rows.append(Row(f"{words}: {name} {spread}; other: exact", "points", float(np.mean(after[name])),
                        float(np.mean(before[name]))))  # fmt: skip
    return rows


def judged(given: argparse.Namespace, model: ModelFolder, make: Clips) -> Verdicts:
    """Reward and oracle of one clip for each held-out prompt; the same seeds whoever samples."""
    from common.toon.oracle import judge  # noqa: PLC0415 - of the toon world alone
    from common.toon.prompts import shot_of  # noqa: PLC0415
    from rewarders.checkpoints import load_heads  # noqa: PLC0415

    asked = prompts_for(given, model).heldout(given.quality, 0)
    clips = [decode_clip(make(prompt, [seed])[0]) for seed, prompt in enumerate(asked)]
    heads = [head.score(clips, asked) for head in load_heads("toon") if head.dimension in DIMENSIONS]
    found: Verdicts = {"reward": np.mean(heads, 0).tolist()}
    for clip, prompt in zip(clips, asked, strict=True):
        for name, value in asdict(judge(clip, shot_of(prompt))).items():
            found.setdefault(f"oracle's {name}", []).append(value)
    return found


def measure(given: argparse.Namespace) -> Report:
    """Exact against the pipeline, then every shortcut."""
    model = open_given(given)
    rows, aims = against_plain(given, model)
    gains: dict[str, float] = {}
    before: Verdicts = {}
    if given.model == TOON and given.quality and given.shortcuts:
        before = judged(given, model, sampling(model, settings(given)).thing)
    for words in given.shortcuts:
        speed, *costs = shortcut(given, model, words, before)
        rows += [speed, *costs]
        if speed.ratio is not None and telling(model, words):
            gains[words] = speed.ratio.median
    if gains and is_cuda(given.device):
        aims.append(shortcut_aim(aims[0], gains))
    return Report("sampling", rows, aims, ("torch", "diffusers", "transformers"), given.device)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    *options.OPTIONS,
    ("--rounds", {"type": int, "default": ROUNDS, "help": f"after one that is not counted (default: {ROUNDS})"}),
    ("--steps", {"type": int, "default": 10, "help": "denoising steps (default: 10)"}),
    ("--guidance", {"type": float, "default": GUIDANCE, "help": f"classifier-free guidance (default: {GUIDANCE})"}),
    ("--micro-batch", {"type": int, "default": N, "help": f"candidates denoised together (default: {N})"}),
    ("--vae-tiling", {"action": "store_true", "help": "both VAEs work in tiles: less memory at large sizes"}),
    ("--shortcuts", {"nargs": "*", "default": list(SHORTCUTS), "choices": list(SHORTCUTS), "help": "which to measure"}),
    ("--quality", {"type": int, "default": QUALITY_PROMPTS, "help": "held-out prompts for the cost; 0: only speed"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
