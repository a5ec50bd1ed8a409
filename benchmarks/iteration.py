"""Time and memory of one iteration of the alignment loop, by phase: ``python -m benchmarks.iteration``.

```
encode ─> denoise N candidates ─> decode ─> mp4 ─> score ─> best and worst ─> GAPO step ─> publish ─> load
sampler ────────────────────────────────────────── rewarder ─ exchange ────── learner ─────────────── sampler
```

It runs the roles' own loops in one process, in the order of `deploy/runtime/serial.py`, with a ledger on disk. The time
of nested phases does not count for the outer phase. On a GPU, peak memory is listed below, of all roles together. This
is the process's first iteration, so it includes one-time initialization of libraries.

``--model 5b-i2v --device cuda:0`` runs a published family at full size with random weights. Times are the same as with
the published weights, but clips and rewards are meaningless. All models use the embedded toon reward heads; larger
clips are scaled down for them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.sampler import Sampler
from benchmarks import options
from benchmarks.device import GB, is_cuda, wait
from benchmarks.harness import Aim, Report, Row, main
from benchmarks.options import model_flags, open_given, prompts_for
from benchmarks.random_models import TOON
from common.config import RunConfig, load_config
from common.errors import ConfigError
from common.exchange.api import LearnerExchange
from common.exchange.local import LocalExchange
from common.messages import Conditioning, Prompt, Score, ScoreTask, WeightVersion
from common.models.cogvideox import ModelFolder
from learner.batch import Batch
from learner.learner import Learner
from rewarders.head_files import load_heads
from rewarders.interface import Reward
from rewarders.rewarder import Rewarder
from rewarders.toon_heads.heads import CLIP_SHAPE

N = 4
STEPS, FAMILY_STEPS = 10, 50
GUIDANCE, FAMILY_GUIDANCE = 3.0, 6.0
OPENING = ("open sampler", "open rewarder", "open learner")  # before the iteration
PHASES = {
    "open sampler": "sampler opened: transformer, T5, VAE",
    "open rewarder": "rewarder opened: the six embedded toon heads",
    "open learner": "learner opened: transformer, two adapters; the base is version 0",
    "encode": "caption and first frame encoded",
    "denoise": "candidates denoised",
    "decode": "latents decoded to pixels",
    "submit": "clips written as mp4, candidates put into the ledger",
    "score": "clips decoded and scored by the embedded toon heads",
    "pair": "scores put into the ledger, best and worst selected",
    "step": "GAPO step of the adapter on the pair",
    "commit": "pair leased, step committed",
    "publish": "version published",
    "load": "version loaded into the sampler",
}


def settings(given: argparse.Namespace) -> RunConfig:
    """The run's configuration: one pair per step, one step per published version."""
    toon = given.model == TOON
    sampler = {
        "candidates": N,
        "steps": given.steps or (STEPS if toon else FAMILY_STEPS),
        "guidance": GUIDANCE if toon else FAMILY_GUIDANCE,
        "micro_batch": given.micro_batch or (N if toon else 1),
        "vae_tiling": given.vae_tiling,
    }
    flags = model_flags(given) | options.checkpointing_flag(given) | {"seed": given.seed, "steps": 1}
    flags |= {f"sampler.{key}": value for key, value in sampler.items()}
    return load_config(flags=flags | {"learner.train": "lora", "learner.batch_size": 1, "learner.micro_batch": 1})


class PhaseTimer:
    """Seconds and, on a GPU, peak memory of each phase. A nested phase pauses the outer one's clock."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self._device, self._open, self._since = device, [], time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """``with timer.phase("score"):`` times its body as one of PHASES."""
        self._record()
        self._open.append(name)
        try:
            yield
        finally:
            self._record()
            self._open.pop()

    def _record(self) -> None:
        """Add the time since the last call to the innermost open phase."""
        wait(self._device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
            if is_cuda(self._device):
                self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated(self._device))
        if is_cuda(self._device):
            torch.cuda.reset_peak_memory_stats(self._device)
        self._since = time.perf_counter()

    def rows(self) -> list[Row]:
        """One row per phase in the order of PHASES, the iteration's total, and, on a GPU, the memory peaks."""
        times = [Row(text, "s", self.seconds[name]) for name, text in PHASES.items() if name in self.seconds]
        whole = sum(seconds for name, seconds in self.seconds.items() if name not in OPENING)
        peaks = [
            Row(f"{text}: peak memory", "GB", self.peaks[name] / GB)
            for name, text in PHASES.items()
            if name in self.peaks
        ]
        return [*times, Row("the iteration, from encoding to loading", "s", whole), *peaks]


# The roles, with their phases recorded.


class TimedSampler(Sampler):
    """See `Sampler`."""

    def __init__(self, timer: PhaseTimer, model: ModelFolder, config: RunConfig) -> None:
        self._timer = timer
        with timer.phase("open sampler"):
            super().__init__(model, config)

    def encode(self, prompt: Prompt) -> Conditioning:
        """See `Sampler.encode`."""
        with self._timer.phase("encode"):
            return super().encode(prompt)

    def denoise(self, conditioning: Conditioning, seeds: Sequence[int]) -> torch.Tensor:
        """See `Sampler.denoise`."""
        with self._timer.phase("denoise"):
            return super().denoise(conditioning, seeds)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `Sampler.decode`."""
        with self._timer.phase("decode"):
            return super().decode(latents)


class TimedRewarder(Rewarder):
    """See `Rewarder`."""

    def __init__(self, timer: PhaseTimer, config: RunConfig) -> None:
        self._timer = timer
        with timer.phase("open rewarder"):
            super().__init__([ScalingHead(head) for head in load_heads("toon", config.model.device)], config.reward)

    def score(self, tasks: Sequence[ScoreTask]) -> list[Score]:
        """See `Rewarder.score`."""
        with self._timer.phase("score"):
            return super().score(tasks)


class TimedLearner(Learner):
    """See `Learner`."""

    def __init__(self, timer: PhaseTimer, model: ModelFolder, config: RunConfig, folder: Path) -> None:
        self._timer = timer
        with timer.phase("open learner"):
            super().__init__(model, config, folder)

    def optimize(self, batch: Batch) -> tuple[dict[str, float], float]:
        """See `Learner.optimize`."""
        with self._timer.phase("step"):
            return super().optimize(batch)

    def publish(self, exchange: LearnerExchange | None) -> WeightVersion | None:
        """See `Learner.publish`."""
        with self._timer.phase("publish" if self.step else "open learner"):
            return super().publish(exchange)


class ScalingHead:
    """A toon head that accepts clips of any size."""

    def __init__(self, head: Reward) -> None:
        self._head = head
        self.dimension, self.digest = head.dimension, head.digest

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `Reward.score`."""
        return self._head.score([scaled(clip) for clip in clips], prompts)


def scaled(clip: np.ndarray) -> np.ndarray:
    """A clip uint8 [F, H, W, 3] as the heads take it: frames at even distances, each scaled down."""
    count, height, width, _ = CLIP_SHAPE
    if clip.shape == CLIP_SHAPE:
        return clip
    chosen = np.linspace(0, len(clip) - 1, count).round().astype(int)
    return np.stack([np.asarray(Image.fromarray(clip[index]).resize((width, height))) for index in chosen])


# The iteration.


def iterate(given: argparse.Namespace, model: ModelFolder, folder: Path, timer: PhaseTimer) -> bool:
    """Run one iteration. Returns whether the sampler ends with the version that the learner published.

    Raises:
        ConfigError: the candidates gave no pair.
    """
    config = settings(given)
    with ExitStack() as stack:
        sampler = TimedSampler(timer, model, config)
        rewarder = TimedRewarder(timer, config)
        exchange = LocalExchange(folder, config, prompts_for(given, model))
        stack.callback(exchange.close)
        learner = TimedLearner(timer, model, config, folder)
        stack.callback(learner.close)
        learner.resume(exchange)
        with timer.phase("encode"):
            learner.empty_embeds = sampler.empty_prompt_embeds()
        with timer.phase("submit"):
            for _ in range(0, N, config.sampler.micro_batch):
                sampler.work(exchange)
        with timer.phase("pair"):
            rewarder.work(exchange)
        with timer.phase("commit"):
            stats = learner.work(exchange)
        if stats is None:
            states = [state.value for state, count in exchange.counts().items() if count]
            raise ConfigError(f"all {N} candidates tied ({', '.join(states)}); another --seed makes others")
        with timer.phase("load"):
            sampler.load(*learner.store.load(learner.version))
        pushed = learner.store.manifest(learner.version)
        return (sampler.version, sampler.policy_digest()) == (pushed.version, pushed.digest)


def measure(given: argparse.Namespace) -> Report:
    """Measure one iteration."""
    model, timer = open_given(given), PhaseTimer(given.device)
    with tempfile.TemporaryDirectory() as folder:
        held = iterate(given, model, Path(folder), timer)
    aim = Aim("the sampler holds the weights that were published (digests)", float(held), "1", held)
    packages = ("torch", "diffusers", "transformers", "peft", "deepspeed")
    return Report("iteration", timer.rows(), [aim], packages, given.device)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    *options.OPTIONS,
    options.CHECKPOINTING,
    ("--steps", {"type": int, "help": f"denoising steps (default: toon {STEPS}, others {FAMILY_STEPS})"}),
    ("--micro-batch", {"type": int, "help": f"candidates denoised together (default: toon {N}, others 1)"}),
    ("--vae-tiling", {"action": "store_true", "help": "the VAE works in tiles: less memory at large sizes"}),
    ("--seed", {"type": int, "default": 0, "help": "seed of the candidates and the step (default: 0)"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
