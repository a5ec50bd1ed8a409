"""Variants, their runs, and their evaluation, as `douga` commands in one folder.

```
ROOT/seed-S/LABEL      the run of a variant with run seed S
ROOT/seed-S/NAME       data that variants of this seed train on (`benchmarks/training/data.py`)
ROOT/evaluation        `douga evaluate` of the base model and every run
```

A command that has finished before returns at once, so the same benchmark started again goes on where it was.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.config import RunConfig, load_config
from common.errors import ConfigError
from deploy.cli.main import main
from deploy.evaluation.report import JSON
from deploy.run_dir import layout
from deploy.run_dir.jsonl import TIMELINE, read_json_lines

BASE = "base"  # label of the embedded model in the evaluation
# Keys of every run. The evaluation is done once for all runs, and a probe would be another clip than the budget's.
COMMON = {"mode": "serial", "exchange.max_lag": "0", "evaluation.prompts": "0", "guardrails.prompts": "0"}


@dataclass(frozen=True)
class Cost:
    """What something took. Seconds are those of sampling, scoring and training on an idle machine (`cost_of`)."""

    clips: int = 0  # sampled
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.clips + other.clips, self.seconds + other.seconds)


@dataclass(frozen=True)
class Prepared:
    """Training data: the configuration keys that name it, and what it took to make it."""

    flags: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = Cost()


class Data(Protocol):
    """What a variant is trained on."""

    def prepare(self, study: Study, seed: int) -> Prepared:
        """Makes the data, or finds it."""
        ...


class Online:
    """Candidates of the current policy."""

    def prepare(self, study: Study, seed: int) -> Prepared:
        """Nothing is made before the run."""
        return Prepared()


@dataclass(frozen=True)
class Variant:
    """One row of the table: what is trained on, and the configuration keys that differ from the toon run's."""

    label: str  # folder of its runs, and label in the evaluation: letters, digits, '-'
    title: str  # in the table
    flags: Mapping[str, str]
    data: Data = field(default_factory=Online)


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    cost: Cost  # with that of its data


@dataclass(frozen=True)
class Study:
    """Runs in one folder, which share some configuration keys."""

    root: Path
    flags: Mapping[str, str] = field(default_factory=dict)  # of every run, besides `COMMON`
    prompts: int = 240  # held-out prompts of the evaluation

    def keys(self, seed: int) -> dict[str, str]:
        """The keys of every run with this seed."""
        return COMMON | dict(self.flags) | {"root": str(self.folder(seed)), "seed": str(seed)}

    def folder(self, seed: int) -> Path:
        """Where the runs with this seed are."""
        return self.root / f"seed-{seed}"

    def config(self, seed: int) -> RunConfig:
        """The configuration that the variants start from."""
        return load_config(layout.TOON, self.keys(seed))

    def groups(self, seed: int) -> int:
        """Groups that a run trains on, each once."""
        config = self.config(seed)
        return config.steps * config.learner.batch_size

    def train(self, variant: Variant, seed: int) -> Trained:
        """Trains a variant. Raises `ConfigError` for bad keys, `SystemExit` if a command fails or is interrupted."""
        data = variant.data.prepare(self, seed)
        keys = {**self.keys(seed), **data.flags, **variant.flags, "name": variant.label}
        douga("run", str(layout.TOON), *as_flags(keys))
        folder = self.folder(seed) / variant.label
        return Trained(folder, data.cost + cost_of(folder))

    def evaluate(self, runs: Mapping[str, Sequence[Trained]]) -> Mapping[str, Any]:
        """Compares all runs with the embedded model. Returns the content of evaluation.json."""
        out = self.root / "evaluation"
        models = [
            f"{run_label(name, seed)}={one.folder}" for name, found in runs.items() for seed, one in enumerate(found)
        ]
        keys = {key: value for key, value in self.flags.items() if key.partition(".")[0] in ("sampler", "reward")}
        asked = ["--config", str(layout.TOON), "--out", str(out), "--count", str(self.prompts), "--controls", "0"]
        douga("evaluate", f"{BASE}=toon", *models, *asked, *as_flags({"mode": "serial"} | keys))
        return json.loads((out / JSON).read_text("utf-8"))


def train_all(study: Study, variants: Sequence[Variant], seeds: Sequence[int]) -> dict[str, list[Trained]]:
    """Trains every variant with every seed. Returns the runs by label, in the order of the seeds."""
    labels = [variant.label for variant in variants]
    if len(set(labels)) < len(labels) or BASE in labels:
        raise ConfigError(f"labels {', '.join(labels)}: each has to differ from the others, and from {BASE!r}")
    found: dict[str, list[Trained]] = {label: [] for label in labels}
    for seed in seeds:
        for variant in variants:
            found[variant.label].append(study.train(variant, seed))
    return found


def run_label(label: str, seed: int) -> str:
    """The label of a run in the evaluation."""
    return f"{label}-{seed}"


def douga(*arguments: str) -> None:
    """Prints and runs a command. Raises `SystemExit` with its exit code if that is not 0."""
    print(f"$ {shlex.join(['douga', *arguments])}", file=sys.stderr, flush=True)
    code = main(arguments)
    if code:
        raise SystemExit(code)


def cost_of(folder: Path) -> Cost:
    """What a run or a collection took, from its timeline. Clips that existed before are not counted as sampled.

    Each unit of work counts as long as the fastest of its kind took, so other load on the machine hardly counts.
    """
    _, config = layout.find_run(str(folder))
    units, fastest = Counter[str](), dict[str, float]()
    for span in read_json_lines(folder / TIMELINE):
        kind, count = span["kind"], span["units"]
        units[kind] += count
        fastest[kind] = min(fastest.get(kind, math.inf), span["seconds"] / count)
    clips = 0 if config.offline else units["sampling"]
    return Cost(clips, sum(count * fastest[kind] for kind, count in units.items()))


def as_flags(keys: Mapping[str, str]) -> list[str]:
    """Configuration keys as arguments of a command."""
    return [word for key, value in keys.items() for word in (f"--{key}", value)]
