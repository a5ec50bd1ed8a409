"""The interface of metrics over sets of clips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from common.messages import Prompt
from rewarders.interface import Clip


@runtime_checkable
class SetMetric(Protocol):
    """Measures a whole set of clips. Constructed as ``Class(config: SetMetricConfig, device: str)``."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the numbers; at least one."""
        ...

    def measure(self, clips: Iterable[tuple[Clip, Prompt]]) -> dict[str, float]:
        """Returns one number for each output, in the metric's own unit and direction.

        Reads the clips once and one at a time, so that they need not fit into memory. Raises `ValueError`, which names
        the prompt, for a clip that cannot be used, and for too few clips.
        """
        ...
