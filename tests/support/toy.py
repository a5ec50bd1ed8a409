"""A run that takes seconds: a tiny random model, and rewards that are a hash of the clip.

Because of the hash every bit of every clip matters: two runs have the same pairs and weights only if all their clips
are bit-identical. `python -m tests.support.toy ROOT CALLS` runs it and kills itself (SIGKILL) at the CALLS-th check of
the stop predicate; with a third argument it runs a small version of the embedded model instead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from common.config import DIMENSIONS, RunConfig, algorithm_class, load_config
from common.messages import Prompt
from deploy.run_dir import layout


class HashReward:
    """A raw value in 0..100 from the bytes of the clip."""

    def __init__(self, dimension: str) -> None:
        self.dimension = dimension
        self.digest = f"hash-{dimension}"

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        return [self._value(clip) for clip in clips]

    def _value(self, clip: np.ndarray) -> float:
        digest = blake2b(clip.tobytes() + self.dimension.encode(), digest_size=4).digest()
        return 100 * int.from_bytes(digest) / 2**32


class ConstantReward(HashReward):
    """Scores everything equally, so that no pair can be made."""

    def _value(self, clip: np.ndarray) -> float:
        return 50.0


class Said:
    """A `Progress` that records the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, status: Any) -> None:
        """See `Progress`."""

    def message(self, line: str) -> None:
        """See `Progress`."""
        self.lines.append(line)


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Check every 50 ms whether something holds. Raises `TimeoutError` if it never does."""
    pause, ends = Event(), time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            raise TimeoutError("what was waited for did not happen")
        pause.wait(0.05)


def rewards(kind: type[HashReward] = HashReward) -> list[HashReward]:
    return [kind(name) for name in DIMENSIONS]


def config(root: Path, **flags: Any) -> RunConfig:
    """Four steps of two pairs, without guardrails. The model is `root`/model."""
    values = {
        "root": root / "runs",
        "name": "toy",
        "model.path": root / "model",
        "steps": 4,
        "sampler.candidates": 2,
        "sampler.steps": 2,
        "learner.batch_size": 2,
        "learner.lr": 1e-3,
        "learner.checkpoint_every": 2,
        "exchange.max_lag": 0,
        "evaluation.prompts": 2,
        "evaluation.clips": 2,
        "guardrails.prompts": 0,
    }
    if "refresh_every" in algorithm_class(str(flags.get("algorithm.name", "gapo"))).Config.model_fields:
        values["algorithm.refresh_every"] = 3
    return load_config(None, {name: str(value) for name, value in (values | flags).items()})


def embedded(root: Path) -> RunConfig:
    """The default run with the embedded model and heads, cut down to three steps of two pairs."""
    values = {
        "root": root / "runs",
        "name": "embedded",
        "steps": 3,
        "learner.batch_size": 2,
        "learner.checkpoint_every": 2,
        "evaluation.prompts": 4,
        "evaluation.clips": 2,
    }
    return load_config(layout.TOON, {name: str(value) for name, value in values.items()})


def after(calls: int, what: Callable[[], bool]) -> Callable[[], bool]:
    """A stop predicate that returns False `calls` - 1 times and then calls `what`."""
    asked = iter(range(1, sys.maxsize))
    return lambda: what() if next(asked) >= calls else False


def kill() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


if __name__ == "__main__":
    from deploy.runtime import serial

    root, stop = Path(sys.argv[1]), after(int(sys.argv[2]), kill)
    if len(sys.argv) > 3:
        serial.run(embedded(root), stop=stop)
    else:
        serial.run(config(root), rewards(), stop=stop)
