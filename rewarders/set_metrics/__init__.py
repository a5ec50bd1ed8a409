"""Metrics over sets of clips, such as a Fréchet distance to real clips. Metrics of single clips are judges.

To add one, write a class that implements `interface.SetMetric` in its own module and add it to `registry.KINDS`; a
user's class needs no registration.
"""

from rewarders.set_metrics.interface import SetMetric
from rewarders.set_metrics.registry import KINDS, open_set_metric

__all__ = ["KINDS", "SetMetric", "open_set_metric"]
