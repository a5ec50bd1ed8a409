"""How fast candidates are sampled, and what each shortcut gives and costs: ``python -m benchmarks.sampling``.

```
   ours    Sampler: caption and first frame encoded once, N candidates in one batch, both captions in one call
   other   diffusers' pipeline as its documentation has it, called N times
   limit   the transformer's operations alone, at the rate that a large matrix product reaches in the same run
```

All three end in mp4 bytes of the same N clips. Every round has a prompt of its own, so nothing is cached from the round
before. A shortcut (`actors/speed.py`) stands beside ours without it.

On the toon world every shortcut's cost is measured too: the same prompts and seeds with and without it, scored by the
reward heads and by the oracle; the change with its 95 % interval stands in the case's words, its mean in `ours`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from actors.prompts import open_prompts
from actors.sampler import Sampler
from benchmarks.report import Aim, Report, Row, main, ratio
from common.clips import decode_clip, encode_mp4
from common.config import DIMENSIONS, RunConfig, load_config
from common.messages import Prompt
from common.models import ModelFolder, open_model, predict_v
from common.stats import paired_bootstrap

N, ROUNDS, QUALITY_PROMPTS = 4, 5, 60
GUIDANCE = 3.0  # on the toon world; the large models' own is 6
PEAK_SIZE, PEAK_SECONDS = 2048, 1.0
SHORTCUTS: dict[str, dict[str, Any]] = {
    "guidance in 0.2..0.8": {"sampler.guidance_interval": "0.2,0.8"},
    "cache 0.05": {"sampler.cache_threshold": 0.05},
    "cache 0.15": {"sampler.cache_threshold": 0.15},
    "half the steps": {},
    "compiled": {"sampler.compile": True},
}


def settings(given: argparse.Namespace, **more: Any) -> RunConfig:
    """The toon run's sizes for the toon model, the family's own for others; `more` are dotted keys."""
    flags: dict[str, Any] = {"model.path": given.model, "model.device": given.device, "sampler.candidates": N}
    flags |= {f"sampler.{name}": getattr(given, name) for name in ("micro_batch", "steps", "guidance")}
    if given.model != "toon":
        flags |= {"model.frames": 49, "model.height": 480, "model.width": 720, "model.dtype": "bfloat16"}
    return load_config(flags=flags | more)


def prompts(given: argparse.Namespace, model: ModelFolder, count: int) -> list[Prompt]:
    """Toon prompts: for other models their first frames are scaled up, since only sizes matter."""
    source = open_prompts("toon", 0, model.image_conditioned)
    return source.heldout(count, 0)


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
    """The family's pipeline, quiet, on the device."""
    kind: Any = CogVideoXImageToVideoPipeline if model.image_conditioned else CogVideoXPipeline
    pipe = kind.from_pretrained(model.path, torch_dtype=getattr(torch, config.model.dtype)).to(config.model.device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = model.make_scheduler(config.sampler.scheduler)
    return pipe


# The limit.


def operations(model: ModelFolder, config: RunConfig) -> int:
    """Floating-point operations of the transformer for one clip: counted on tensors without memory."""
    size = config.model
    transformer = model.empty_transformer("float32")
    shape = model.latent_shape(size.frames, size.height, size.width)
    captions = 2 if config.sampler.guidance > 1 else 1
    latents = torch.empty(captions, *shape, device="meta")
    image = latents[:, :1] if model.image_conditioned else None
    text = torch.empty(captions, model.max_text_length, model.transformer_config["text_embed_dim"], device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        predict_v(transformer, latents, image, torch.zeros(captions, dtype=torch.int64, device="meta"), text)
    return counter.get_total_flops() * config.sampler.steps


def peak(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype) for _ in range(2))
    done, began = 0, time.perf_counter()
    while time.perf_counter() < began + PEAK_SECONDS:
        torch.mm(left, right)
        _wait(device)
        done += 2 * PEAK_SIZE**3
    return done / (time.perf_counter() - began)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(device: str, what: Callable[[], object]) -> float:
    """How long it takes, work on the device included."""
    began = time.perf_counter()
    what()
    _wait(device)
    return time.perf_counter() - began


# The report.


def against_plain(given: argparse.Namespace, model: ModelFolder) -> tuple[Row, Aim]:
    """Ours beside the pipeline, in alternating rounds."""
    config = settings(given)
    sampler, pipe = Sampler(model, config), open_pipeline(model, config)
    rate = peak(given.device, getattr(torch, config.model.dtype))
    times: list[tuple[float, float]] = []
    for number, prompt in enumerate(prompts(given, model, given.rounds + 1)):
        seeds = range(N * number, N * (number + 1))
        times.append(
            (
                seconds(given.device, lambda p=prompt, s=seeds: ours(sampler, p, s)),
                seconds(given.device, lambda p=prompt, s=seeds: plain(pipe, config, p, s)),
            )
        )
    mine, theirs = ([N / taken for taken in column] for column in zip(*times[1:], strict=True))  # the first warms up
    gain = ratio(mine, theirs)
    limit, least = rate / operations(model, config), 1.5 if given.device == "cpu" else 1.2
    words = f"{N} candidates, exact; other: the pipeline {N} times"
    row = Row(words, "videos/s", median(mine), median(theirs), limit, gain)
    return row, Aim("exact sampling against the pipeline", gain.median, f">= {least}", gain.median >= least)


def shortcut(given: argparse.Namespace, model: ModelFolder, words: str, flags: dict[str, Any]) -> list[Row]:
    """A shortcut beside ours without it: its speed, and on the toon world its cost."""
    steps = given.steps // 2 if words == "half the steps" else given.steps
    exact, quick = Sampler(model, settings(given)), Sampler(model, settings(given, **flags, **{"sampler.steps": steps}))
    times: list[tuple[float, float]] = []
    for number, prompt in enumerate(prompts(given, model, given.rounds + 1)):
        seeds = range(N * number, N * (number + 1))
        pair = tuple(seconds(given.device, lambda p=prompt, s=seeds, w=w: ours(w, p, s)) for w in (quick, exact))
        times.append(pair)  # type: ignore[arg-type]
    mine, theirs = ([N / taken for taken in column] for column in zip(*times[1:], strict=True))
    rows = [Row(f"{words}; other: exact", "videos/s", median(mine), median(theirs), None, ratio(mine, theirs))]
    if given.model == "toon" and given.quality:
        rows += cost(given, model, exact, quick, words)
    return rows


def cost(given: argparse.Namespace, model: ModelFolder, exact: Sampler, quick: Sampler, words: str) -> list[Row]:
    """The change of the mean reward and of the oracle's figures, with 95 % intervals."""
    before, after = judged(given, model, exact), judged(given, model, quick)
    rows = []
    for name in before:
        change = paired_bootstrap(before[name], after[name])
        spread = f"{change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        rows.append(Row(f"{words}: {name} {spread}; other: exact", "points", float(np.mean(after[name])),
                        float(np.mean(before[name]))))  # fmt: skip
    return rows


def judged(given: argparse.Namespace, model: ModelFolder, sampler: Sampler) -> dict[str, list[float]]:
    """Reward and oracle of one clip for each held-out prompt; the same seeds whoever samples."""
    from common.toon.oracle import judge  # noqa: PLC0415 - of the toon world alone
    from common.toon.prompts import shot_of  # noqa: PLC0415
    from rewarders.anime import load_heads  # noqa: PLC0415

    asked = prompts(given, model, given.quality)
    clips = [decode_clip(ours(sampler, prompt, [seed])[0]) for seed, prompt in enumerate(asked)]
    heads = [head.score(clips, asked) for head in load_heads("toon") if head.dimension in DIMENSIONS]
    found: dict[str, list[float]] = {"reward": np.mean(heads, 0).tolist()}
    for clip, prompt in zip(clips, asked, strict=True):
        for name, value in asdict(judge(clip, shot_of(prompt))).items():
            found.setdefault(f"oracle's {name}", []).append(value)
    return found


def measure(given: argparse.Namespace) -> Report:
    """Exact against the pipeline, then every shortcut."""
    model = open_model(given.model)
    row, aim = against_plain(given, model)
    rows = [row]
    for words in given.shortcuts:
        rows += shortcut(given, model, words, SHORTCUTS[words])
    return Report("sampling", rows, [aim], ("torch", "diffusers", "transformers"))


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--model", {"default": "toon", "help": "'toon' or a CogVideoX pipeline folder"}),
    ("--device", {"default": "cpu", "help": "cpu, cuda:0"}),
    ("--rounds", {"type": int, "default": ROUNDS, "help": f"after one that is not counted (default: {ROUNDS})"}),
    ("--steps", {"type": int, "default": 10, "help": "denoising steps (default: 10)"}),
    ("--guidance", {"type": float, "default": GUIDANCE, "help": f"classifier-free guidance (default: {GUIDANCE})"}),
    ("--micro-batch", {"type": int, "default": N, "help": f"candidates denoised together (default: {N})"}),
    ("--shortcuts", {"nargs": "*", "default": list(SHORTCUTS), "choices": list(SHORTCUTS), "help": "which to measure"}),
    ("--quality", {"type": int, "default": QUALITY_PROMPTS, "help": "held-out prompts for the cost; 0: only speed"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
