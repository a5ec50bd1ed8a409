"""Opens metrics over sets of clips."""

from __future__ import annotations

from common.config import SetMetricConfig
from common.errors import ConfigError
from rewarders.kinds import class_of
from rewarders.set_metrics.interface import SetMetric

KINDS = {"frechet_video_distance": "rewarders.set_metrics.video_distance:FrechetVideoDistance"}


def open_set_metric(config: SetMetricConfig, device: str = "cpu") -> SetMetric:
    """Returns the metric of a built-in kind, or of a user's class. Raises `ConfigError`."""
    made = class_of(config.kind, KINDS)(config, device)
    if not isinstance(made, SetMetric):
        raise ConfigError(f"kind = {config.kind!r}: must be a SetMetric (rewarders/set_metrics/interface.py)")
    return made
