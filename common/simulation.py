"""Simulated work: how long it takes, whether it fails, and data in the place of what it would have made.

All is a function of (seed, what), so a simulated run that is killed and resumed does again what it did.
"""

from __future__ import annotations

import math
import time
from hashlib import blake2b
from random import Random

from common.config import RunConfig
from common.messages import SerializedTensor


class Simulation:
    """The draws of one run. `what` names a unit of work: any values that tell it from others."""

    def __init__(self, config: RunConfig) -> None:
        self._seed, self._how = config.seed, config.simulation

    def seconds(self, mean: float, *what: object) -> float:
        """Log-normal with this mean and the configured tail."""
        tail = self._how.tail
        return mean * math.exp(tail * self._random("time", *what).gauss(0.0, 1.0) - tail**2 / 2)

    def work(self, mean: float, *what: object) -> None:
        """Take that long."""
        time.sleep(self.seconds(mean, *what))

    def fails(self, *what: object) -> bool:
        """Whether this unit of work fails."""
        return self._random("failure", *what).random() < self._how.failure_rate

    def value(self, *what: object) -> float:
        """A raw score, uniform in 0..100."""
        return 100 * self._random("value", *what).random()

    def _random(self, *what: object) -> Random:
        return Random(repr((self._seed, *what)))


def data(size: int, *what: object) -> SerializedTensor:
    """`size` bytes that differ for every `what`."""
    pattern = blake2b(repr(what).encode()).digest()
    return SerializedTensor("uint8", (size,), (pattern * (size // len(pattern) + 1))[:size])
