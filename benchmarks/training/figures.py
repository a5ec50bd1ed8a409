"""The table of a study, from evaluation.json and the costs of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Cell, Grid
from benchmarks.training.runs import BASE, Trained, Variant, run_label
from common.intervals import mean_interval
from deploy.evaluation.figures import ORACLE
from deploy.guardrails.rules import REWARD


def grid_of(found: Mapping[str, Any], variants: Sequence[Variant], runs: Mapping[str, Sequence[Trained]]) -> Grid:
    """The table of an evaluation (`Study.evaluate`): the base model's means, then the change of every variant."""
    names = [name for name in found["figures"] if name == REWARD or name.startswith(ORACLE)]
    seeds = len(next(iter(runs.values())))
    spread = [f"{REWARD}, lowest seed", f"{REWARD}, highest seed"] if seeds > 1 else []
    base: list[Cell | None] = [Cell(found["figures"][name][BASE]["mean"]) for name in names]
    rows = {"base model, mean": [*base, *(None for _ in spread), None, None]}
    for variant in variants:
        changes = [_changes(found, variant.label, seeds, name) for name in names]
        row = [_change(one) for one in changes]
        row += [Cell(float(end(changes[0].mean(1))), signed=True) for end in (np.min, np.max)] if spread else []
        rows[variant.title] = [*row, *_costs(runs[variant.label])]
    return Grid([name.replace(".", ": ") for name in names] + [*spread, "clips", "minutes"], rows)


def _changes(found: Mapping[str, Any], label: str, seeds: int, name: str) -> np.ndarray:
    """Changes of a figure from the base model, ``[seeds, prompts]``."""
    runs = [found["changes"][run_label(label, seed)] for seed in range(seeds)]
    return np.array([[run[key][name] for key in found["prompts"]] for run in runs])


def _change(values: np.ndarray) -> Cell:
    """The mean of ``[seeds, prompts]``. Prompts are resampled, because runs of one prompt are not independent."""
    interval = mean_interval(values.mean(0))
    return Cell(interval.mean, interval.low, interval.high, signed=True)


def _costs(runs: Sequence[Trained]) -> list[Cell]:
    """Means over the seeds."""
    return [
        Cell(float(np.mean([one.cost.clips for one in runs]))),
        Cell(float(np.mean([one.cost.seconds for one in runs])) / 60),
    ]
