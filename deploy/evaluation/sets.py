"""Metrics over all clips of a model, and controls of the judges. Clips are decoded one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

from common.config import RunConfig, SetMetricConfig
from common.errors import ConfigError
from common.messages import Prompt
from deploy.evaluation.figures import MeasuredModel
from deploy.run_dir.progress import Progress, tracked
from rewarders.controls import compare_with_controls
from rewarders.first_frame import with_first_frame
from rewarders.interface import Clip, as_judge
from rewarders.judges import open_rewards
from rewarders.rewarder import read_clip
from rewarders.set_metrics import SetMetric, open_set_metric
from rewarders.set_metrics.interface import Watch


def check_metrics(config: RunConfig) -> None:
    """Opens all metrics, before anything is sampled. Raises `ConfigError` if one cannot be opened."""
    for name, how in config.evaluation.metrics.items():
        _open(name, how, config.model.device)


def _open(name: str, how: SetMetricConfig, device: str) -> SetMetric:
    try:
        return open_set_metric(how, device)
    except ConfigError as error:
        raise ConfigError(f"evaluation.metrics.{name}: {error}") from error.__cause__


def measure_sets(models: Sequence[MeasuredModel], config: RunConfig, progress: Progress) -> dict[str, dict[str, float]]:
    """Metric -> label -> value, for the metrics of `evaluation.metrics`. A metric of several outputs is NAME.OUTPUT.

    Raises `ConfigError` if a metric cannot be opened, or cannot use the clips.
    """
    found: dict[str, dict[str, float]] = {}
    for name, how in config.evaluation.metrics.items():
        metric = _open(name, how, config.model.device)
        if hasattr(metric, "watch"):
            metric.watch = _watch(name, progress)  # type: ignore[attr-defined]
        for model in models:
            clips = tracked(progress, f"{name} of {model.label}", _clips(model), len(model.candidates.rows))
            try:
                values = metric.measure(clips)
            except ValueError as error:
                raise ConfigError(f"evaluation.metrics.{name}: {model.label}: {error}") from None
            for output, value in values.items():
                key = name if len(metric.outputs) == 1 else f"{name}.{output}"
                found.setdefault(key, {})[model.label] = value
    return found


def _watch(name: str, progress: Progress) -> Watch:
    return lambda what, items: tracked(progress, f"{name}: {what}", items, len(items))


def compare_controls(
    model: MeasuredModel, config: RunConfig, count: int, progress: Progress
) -> dict[str, dict[str, dict[str, float]]]:
    """Score -> control -> `ControlResult`, over the first `count` clips of a model."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    count = min(count, len(model.candidates.rows))
    if not count or config.reward.empty:
        return found
    for reward in open_rewards(config.reward, config.model.device):
        judge = as_judge(reward)
        clips = tracked(progress, f"controls of {', '.join(judge.outputs)}", islice(_clips(model), count), count)
        for control, outputs in compare_with_controls(judge, clips).items():
            for output, result in outputs.items():
                if result.clips:
                    found.setdefault(output, {})[control] = asdict(result)
    return found


def _clips(model: MeasuredModel) -> Iterator[tuple[Clip, Prompt]]:
    for row in model.candidates.rows.values():
        clip = read_clip(model.candidates.clip(row))
        yield clip, with_first_frame(model.candidates.prompt(row), clip.frames)
