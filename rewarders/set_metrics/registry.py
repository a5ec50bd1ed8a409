"""Opens metrics over sets of clips."""

from __future__ import annotations

from common.config import SetMetricConfig
from common.errors import ConfigError
from common.errors.oom import reraise_oom
from common.errors.places import describe_error
from rewarders.judging.thread import in_process
from rewarders.kinds import class_of
from rewarders.set_metrics.interface import SetMetric

KINDS = {"frechet_video_distance": "rewarders.set_metrics.video_distance:FrechetVideoDistance"}


def open_set_metric(config: SetMetricConfig, device: str = "cpu") -> SetMetric:
    """Returns the metric of a built-in kind, or of a user's class. Raises `ConfigError`."""
    try:
        made = class_of(config.kind, KINDS)(config, device)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a user's own constructor
        error = in_process(error)
        reraise_oom(error)
        raise ConfigError(f"kind = {config.kind!r}: {describe_error(error)}") from error
    if not isinstance(made, SetMetric):
        raise ConfigError(f"kind = {config.kind!r}: must be a SetMetric (rewarders/set_metrics/interface.py)")
    return made
