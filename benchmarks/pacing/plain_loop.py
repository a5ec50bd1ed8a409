"""The embedded toon model for real: ``douga run`` beside the script that one would write without it.

```
   other   for each prompt: the diffusers pipeline N times, one score at a time; a plain Diffusion-DPO step that encodes
           its clips; one process
   ours    `douga run` with the same model, prompts, N, pairs per step, learning rate and threads
```

Both are timed from the end of their first step to the end of their last one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from actors.prompts.source import open_prompts
from benchmarks import learning, sampling
from benchmarks.harness import Aim, Row, ratio
from benchmarks.random_models import TOON, open_named
from benchmarks.rewarding import MemoryExchange, rewarder
from common.config import RunConfig, load_config
from common.data.video import decode_clip
from common.messages import Prompt, ScoreTask
from common.seeds import candidate_seed
from deploy.run_dir.jsonl import METRICS, read_json_lines

CORES = 2
WAYS = {
    "serial": {"mode": "serial"},
    "a cluster of one sampler": {"mode": "cluster", "cluster.sampler.count": 1},
}


def settings(steps: int) -> RunConfig:
    """The toon run's settings for plain DPO, without evaluation and guardrails."""
    flags: dict[str, Any] = {"steps": steps, "algorithm.name": "dpo", "evaluation.prompts": 0, "guardrails.prompts": 0}
    return load_config(flags=flags)


class PlainLoop:
    """OnlineVPO's loop as one writes it, with diffusers and torch alone."""

    def __init__(self, config: RunConfig) -> None:
        self.config, model = config, open_named(TOON)
        self.learner = learning.PlainDPO(model, config)
        self.pipe = sampling.open_pipeline(model, config)
        self.pipe.transformer = self.learner.policy
        self.rewarder = rewarder(1, "cpu")
        self.prompts = open_prompts(TOON, config.seed)

    def step(self, number: int) -> None:
        """Sample, score and train on `learner.batch_size` prompts."""
        size = self.config.learner.batch_size
        self.learner.policy.eval()
        pairs = [self._pair(self.prompts(ordinal)) for ordinal in range(number * size, (number + 1) * size)]
        self.learner.policy.train()
        chosen, rejected = (torch.stack([pair[place] for pair in pairs]) for place in (0, 1))
        texts = [self.prompts(number * size + place).text for place in range(size)]
        self.learner.step(learning.Clips(chosen, rejected, chosen[:, 0], texts))

    def _pair(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """The best and the worst of N clips, float [frames, 3, H, W] in [-1, 1]."""
        seeds = [candidate_seed(self.config.seed, prompt.purpose, prompt.ordinal, index)
                 for index in range(self.config.sampler.candidates)]  # fmt: skip
        with torch.no_grad():
            clips = sampling.plain(self.pipe, self.config, prompt, seeds)
        rewards = [self._reward(prompt, clip) for clip in clips]
        ends = clips[int(np.argmax(rewards))], clips[int(np.argmin(rewards))]
        pixels = [torch.from_numpy(decode_clip(clip)).permute(0, 3, 1, 2).float() / 127.5 - 1 for clip in ends]
        return pixels[0], pixels[1]

    def _reward(self, prompt: Prompt, clip: bytes) -> float:
        exchange: Any = MemoryExchange([ScoreTask("0", prompt, clip)])
        self.rewarder.work(exchange)
        return mean(exchange.scores[0].values.values())


def plain_rate(config: RunConfig) -> float:
    """Pairs per second of the script."""
    loop = PlainLoop(config)
    loop.step(0)
    began = time.perf_counter()
    for number in range(1, config.steps):
        loop.step(number)
    return config.learner.batch_size * (config.steps - 1) / (time.perf_counter() - began)


def our_rate(config: RunConfig, way: dict[str, Any]) -> float:
    """Pairs per second of ``douga run``, from the times in its metrics."""
    values = {"steps": config.steps, "algorithm.name": "dpo", "evaluation.prompts": 0, "guardrails.prompts": 0} | way
    with tempfile.TemporaryDirectory() as root:
        values |= {"root": root, "name": "ours"}
        flags = [text for key, value in values.items() for text in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "deploy.cli", "run", *flags]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
        times = [one["time"] for one in read_json_lines(Path(root) / "ours" / METRICS)]
    return config.learner.batch_size * (len(times) - 1) / (times[-1] - times[0])


def measure(given: argparse.Namespace) -> tuple[list[Row], list[Aim]]:
    """Alternating rounds of the script and of every way to run douga."""
    torch.set_num_threads(CORES)
    config = settings(given.toon_steps)
    theirs: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(given.rounds):
        theirs.append(plain_rate(config))
        for name, way in WAYS.items():
            ours[name].append(our_rate(config, way))
    rows = [_row(name, rates, theirs) for name, rates in ours.items()]
    best = max(row.ratio.median for row in rows if row.ratio is not None)
    return rows, [Aim("pairs/s against the plain script", best, ">= 2", best >= 2)]


def _row(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    case = f"toon model, {name}; other: a plain script"
    return Row(case, "pairs/s", float(np.median(ours)), float(np.median(theirs)), None, ratio(ours, theirs))
