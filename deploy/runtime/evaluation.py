"""Held-out evaluation of a weight version: enqueues the prompts and ends when all of them are scored.

All modes share one class. They differ in where the work is done:

```
serial, douga evaluate   LocalWorkers.evaluate: samples and scores in this process
cluster                  ClusterRunLoop only waits: samplers and rewarders are other processes
```
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.config import RunConfig
from common.errors import RunFailed
from common.exchange.api import OVER, HubExchange, ScoredCandidate, State
from common.messages import Prompt, Purpose
from deploy.run_dir.progress import Progress, ThroughputTracker

# (version, maximum number of missing prompts, callback after every sampled group) -> False if no work is left
Work = Callable[[int, int, Callable[[], None]], bool]


class StuckError(RunFailed):
    """The run is not finished, but no role can make progress."""


@dataclass
class HeldOutEvaluation:
    """Evaluates versions on the held-out `prompts`. `work` does part of the work, or waits for other processes."""

    config: RunConfig
    prompts: list[Prompt]
    exchange: HubExchange
    progress: Progress
    work: Work

    def evaluate(self, version: int, phase: str) -> tuple[list[ScoredCandidate], int]:
        """Returns all held-out clips of `version`, sorted by prompt, and how many of them were new.

        Clips in the ledger are reused, so an interrupted evaluation resumes. Raises `StuckError` if a prompt failed or
        no work is left.
        """
        self.exchange.enqueue(self.prompts, version)
        found = self._found(version)
        missing = len(self.prompts) - len(found)
        if missing:
            self._finish(version, phase, missing)
            found = self._found(version)
        if len(found) < len(self.prompts):
            counts = {state.value: count for state, count in self._counts().items() if count}
            why = next(iter(self.exchange.failures().values()), "no work is left")
            left = len(self.prompts) - len(found)
            raise StuckError(f"{phase}: {left} of {len(self.prompts)} prompts have no scores: {why}; groups: {counts}")
        return found, missing

    def _finish(self, version: int, phase: str, missing: int) -> None:
        pace, total = ThroughputTracker(self.config), len(self.prompts)

        def show() -> None:
            counts = self._counts()
            pace.groups = max(0, missing - counts[State.PENDING] - counts[State.SAMPLING])
            self.progress.update(pace.of_evaluation(phase, total - missing + pace.groups, total))

        show()
        while self._waiting() and self.work(version, missing, show):
            show()

    def _waiting(self) -> int:
        return sum(count for state, count in self._counts().items() if state not in OVER)

    def _counts(self) -> dict[State, int]:
        return self.exchange.counts(Purpose.EVAL)

    def _found(self, version: int) -> list[ScoredCandidate]:
        found = [one for one in self.exchange.results(Purpose.EVAL, version) if one.prompt.ordinal < len(self.prompts)]
        return sorted(found, key=lambda one: one.prompt.ordinal)
