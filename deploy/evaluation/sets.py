"""Metrics over all clips of a model, and controls of the judges. Clips are decoded one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Prompt
from deploy.evaluation.figures import MeasuredModel
from rewarders.controls import compare_with_controls
from rewarders.first_frame import with_first_frame
from rewarders.interface import Clip, as_judge
from rewarders.judges import open_rewards
from rewarders.rewarder import read_clip
from rewarders.set_metrics import open_set_metric


def measure_sets(models: Sequence[MeasuredModel], config: RunConfig) -> dict[str, dict[str, float]]:
    """Metric -> label -> value, for the metrics of `evaluation.metrics`. A metric of several outputs is NAME.OUTPUT.

    Raises `ConfigError` if a metric cannot be opened, or cannot use the clips.
    """
    found: dict[str, dict[str, float]] = {}
    for name, how in config.evaluation.metrics.items():
        metric = open_set_metric(how, config.model.device)
        for model in models:
            try:
                values = metric.measure(_clips(model))
            except ValueError as error:
                raise ConfigError(f"evaluation.metrics.{name}: {model.label}: {error}") from None
            for output, value in values.items():
                key = name if len(metric.outputs) == 1 else f"{name}.{output}"
                found.setdefault(key, {})[model.label] = value
    return found


def compare_controls(model: MeasuredModel, config: RunConfig, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Score -> control -> `ControlResult`, over the first `count` clips of a model."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    if not count:
        return found
    for reward in open_rewards(config.reward, config.model.device):
        compared = compare_with_controls(as_judge(reward), islice(_clips(model), count))
        for control, outputs in compared.items():
            for output, result in outputs.items():
                if result.clips:
                    found.setdefault(output, {})[control] = asdict(result)
    return found


def _clips(model: MeasuredModel) -> Iterator[tuple[Clip, Prompt]]:
    for row in model.candidates.rows.values():
        clip = read_clip(model.candidates.clip(row))
        yield clip, with_first_frame(model.candidates.prompt(row), clip.frames)
