"""Simulated work: random durations, random failures, and random data of the right size.

Every draw is a function of (seed, what), so a simulated run that is killed and resumed repeats the same draws.
"""

from __future__ import annotations

import math
import time
from hashlib import blake2b
from random import Random

from common.config import RunConfig
from common.messages import SerializedTensor


class Simulation:
    """The random draws of one run. `what` identifies a unit of work: any values that make it unique."""

    def __init__(self, config: RunConfig) -> None:
        self._seed, self._config = config.seed, config.simulation

    def seconds(self, mean: float, *what: object) -> float:
        """A log-normal duration with this mean and the configured tail."""
        tail = self._config.tail
        return mean * math.exp(tail * self._random("time", *what).gauss(0.0, 1.0) - tail**2 / 2)

    def work(self, mean: float, *what: object) -> None:
        """Sleep for such a duration."""
        time.sleep(self.seconds(mean, *what))

    def fails(self, *what: object) -> bool:
        """Whether this unit of work fails."""
        return self._random("failure", *what).random() < self._config.failure_rate

    def value(self, *what: object) -> float:
        """A raw score, uniform in 0..100."""
        return 100 * self._random("value", *what).random()

    def _random(self, *what: object) -> Random:
        return Random(repr((self._seed, *what)))


def data(size: int, *what: object) -> SerializedTensor:
    """A uint8 tensor of `size` bytes that depend on `what`."""
    pattern = blake2b(repr(what).encode()).digest()
    return SerializedTensor("uint8", (size,), (pattern * (size // len(pattern) + 1))[:size])
