"""Throughput of scoring: batched like a rewarder, against one clip at a time.

```
clips (mp4)  ──> Rewarder, batches of `--batch`, six toon heads ──> scores        ours
             ──> the same rewarder, leases of one clip each     ──> scores        other
```

`python -m benchmarks.rewarding --json benchmarks/results/rewarding-DEVICE.json` saves the result.

Clips come from an exchange in memory, so disks do not matter. The heads compute chunks of a fixed size, so that a score
does not depend on the rest of the batch; a single clip is padded to a whole chunk. Another row compares with heads that
score single clips without padding, although their scores would depend on the batch in the last digits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import cast

import torch

from benchmarks.harness import Aim, Report, Row, main, ratio
from common.config import load_config
from common.data.video import encode_mp4
from common.exchange.api import RewarderExchange, Submitted
from common.messages import Score, ScoreTask
from common.toon.prompts import ToonPrompts, shot_of
from common.toon.world import render
from rewarders.head_files import load_heads
from rewarders.rewarder import Rewarder, read_clip
from rewarders.toon_heads import heads

AIM = 3.0
FPS = 8


class MemoryExchange:
    """An exchange in memory that hands out clips and accepts scores."""

    def __init__(self, tasks: Sequence[ScoreTask]) -> None:
        self.tasks, self.scores = list(tasks), list[Score]()

    def lease_candidates(self, worker: str, limit: int) -> list[ScoreTask]:
        """Lease the next clips."""
        leased, self.tasks = self.tasks[:limit], self.tasks[limit:]
        return leased

    def submit_scores(self, worker: str, scores: Sequence[Score]) -> list[Submitted]:
        """Store the scores."""
        self.scores += scores
        return [Submitted(True) for _ in scores]


def clips(count: int) -> list[ScoreTask]:
    """Rendered toon clips with their prompts."""
    prompts = ToonPrompts(0).heldout(count, 0)
    return [ScoreTask(f"{i}", prompt, encode_mp4(render(shot_of(prompt)), FPS)) for i, prompt in enumerate(prompts)]


def rewarder(batch: int, device: str) -> Rewarder:
    """A rewarder with the toon heads."""
    return Rewarder(load_heads("toon", device), load_config(None, {"reward.batch": batch}).reward)


def rate(loop: Rewarder, tasks: Sequence[ScoreTask]) -> tuple[float, list[Score]]:
    """Clips per second, and the scores."""
    exchange = MemoryExchange(tasks)
    began = time.perf_counter()
    while loop.work(cast(RewarderExchange, exchange)):
        pass
    return len(tasks) / (time.perf_counter() - began), exchange.scores


def unpadded(loop: Rewarder, tasks: Sequence[ScoreTask]) -> float:
    """Clips per second one at a time, without padding to a chunk."""
    before, heads.CHUNK = heads.CHUNK, 1
    try:
        return rate(loop, tasks)[0]
    finally:
        heads.CHUNK = before


def parts(loop: Rewarder, tasks: Sequence[ScoreTask]) -> list[Row]:
    """The parts of the time: decoding alone, the heads alone."""
    began = time.perf_counter()
    read = [read_clip(task.clip) for task in tasks]
    decoded = time.perf_counter()
    for judge in loop.judges:
        judge.judge(read, [task.prompt for task in tasks])
    scored = time.perf_counter()
    return [
        Row("decoding alone, one thread", "clips/s", len(tasks) / (decoded - began)),
        Row("six heads alone, batched", "clips/s", len(tasks) / (scored - decoded)),
    ]


def measure(given: argparse.Namespace) -> Report:
    """Alternating rounds; the first one is the warm-up."""
    torch.set_num_threads(given.threads)
    tasks = clips(given.clips)
    many, single = rewarder(given.batch, given.device), rewarder(1, given.device)
    ours, other, bare = list[float](), list[float](), list[float]()
    for _ in range(given.rounds + 1):
        mine, scores = rate(many, tasks)
        theirs, same = rate(single, tasks)
        if scores != same:
            raise RuntimeError("the batch changed a score")
        ours, other, bare = [*ours, mine], [*other, theirs], [*bare, unpadded(single, tasks)]
    ours, other, bare = ours[1:], other[1:], bare[1:]
    gain = ratio(ours, other)
    batched = f"batches of {given.batch}; other: one at a time, equal scores"
    unpadded_case = "the same; other: one at a time, not padded"
    rows = [
        Row(batched, "clips/s", median(ours), median(other), None, gain),
        Row(unpadded_case, "clips/s", median(ours), median(bare), None, ratio(ours, bare)),
        *parts(many, tasks),
    ]
    aim = Aim("batched against one at a time", gain.median, f">= {AIM:g}", gain.median >= AIM)
    return Report("rewarding", rows, [aim], ("torch", "av", "numpy"), given.device)


OPTIONS = (
    ("--clips", {"type": int, "default": 96, "help": "clips per round (default: 96)"}),
    ("--batch", {"type": int, "default": 16, "help": "clips per batch (default: 16)"}),
    ("--rounds", {"type": int, "default": 5, "help": "rounds after the warm-up (default: 5)"}),
    ("--device", {"default": "cpu", "help": "torch device (default: cpu)"}),
    ("--threads", {"type": int, "default": 1, "help": "torch threads (default: 1)"}),
)

if __name__ == "__main__":
    main(__doc__, measure, *OPTIONS)
