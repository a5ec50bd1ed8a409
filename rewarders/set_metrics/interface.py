"""The interface of metrics over sets of clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from common.messages import Prompt
from rewarders.interface import Clip

Watch = Callable[[str, Sequence[Any]], Iterable[Any]]  # passes the items on, and shows how many are done


@runtime_checkable
class SetMetric(Protocol):
    """Measures a whole set of clips. Constructed as ``Class(config: SetMetricConfig, device: str)``.

    A metric that reads more than the clips, such as a reference, may have an attribute ``watch`` (`Watch`), called with
    what is read and its items.
    """

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
