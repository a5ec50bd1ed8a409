"""Says when a judge becomes much slower than it was: a leak, a shared GPU, a server that swaps."""

from __future__ import annotations

import logging
from statistics import median

log = logging.getLogger(__name__)

FIRST = 5  # batches that tell how long a judge usually takes
SLOWER = 10.0  # times as long as usual before the first line, and again for each such factor
LEAST_SECONDS = 5.0  # shorter batches hold nothing up


class Pace:
    """The times of one judge's batches. Batches differ in size, and a GPU scores one clip as fast as four: a batch is
    slow if it took longer than usual both per clip and as a whole."""

    def __init__(self, name: str) -> None:
        self._name, self._factor = name, SLOWER
        self._per_clip: list[float] = []
        self._longest = 0.0

    def add(self, clips: int, seconds: float) -> None:
        """Takes in a batch of `clips` that took `seconds`."""
        if not clips:
            return
        if len(self._per_clip) < FIRST:
            self._per_clip.append(seconds / clips)
            self._longest = max(self._longest, seconds)
            return
        usual = median(self._per_clip)
        limit = self._factor * max(usual * clips, self._longest)
        if seconds > max(limit, LEAST_SECONDS):
            log.warning(
                "judge %s takes %.2g s per clip; it took %.2g s at first", self._name, seconds / clips, usual
            )  # fmt: skip
            self._factor *= SLOWER
