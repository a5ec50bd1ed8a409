"""Held-out evaluation of a weight version: enqueues the prompts and ends when all of them are scored.

All modes share one class. They differ in where the work is done:

```
serial    LocalWorkers.evaluate: samples and scores in this process
cluster   ClusterRunLoop only waits: samplers and rewarders are other processes
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from actors.prompts.heldout import heldout_prompts
from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.errors import RunFailed
from common.exchange.api import OVER, HubExchange, ScoredCandidate, State
from common.messages import Prompt, Purpose
from deploy.run_dir.progress import Progress, ThroughputTracker

BASE = 0  # the version of the base model

# (version, maximum number of missing prompts, callback after every sampled group) -> False if no work is left
Work = Callable[[int, int, Callable[[], None]], bool]


class StuckError(RunFailed):
    """The run is not finished, but no role can make progress."""


@dataclass
class HeldOutEvaluation:
    """Evaluates versions on the held-out prompts. `work` does part of the work, or waits for other processes."""

    config: RunConfig
    source: PromptSource
    exchange: HubExchange
    progress: Progress
    work: Work

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The held-out prompts."""
        return heldout_prompts(self.source, self.config).comparison

    def evaluate(self, version: int, phase: str) -> tuple[list[ScoredCandidate], int]:
        """Returns the held-out clips of `version`, sorted by prompt, and how many of them were new.

        Clips in the ledger are reused, so an interrupted evaluation resumes. A prompt whose clip could not be made or
        scored is missing from the result; `unscored` says why. Raises `StuckError` if no work is left but some prompts
        are unfinished, or if fewer than 2 clips have scores.
        """
        self.exchange.enqueue(self.prompts, version)
        before = self._found(version)
        missing = len(self.prompts) - len(before)
        if not missing:
            return before, 0
        self._finish(version, phase, missing)
        found, failed = self._found(version), self.unscored(version)
        unfinished = len(self.prompts) - len(found) - len(failed)
        if unfinished or len(found) < 2:
            counts = {state.value: count for state, count in self._counts().items() if count}
            why = "no work is left" if unfinished else next(iter(failed.values()))
            left = len(self.prompts) - len(found)
            raise StuckError(f"{phase}: {left} of {len(self.prompts)} prompts have no scores: {why}; groups: {counts}")
        return found, len(found) - len(before)

    def unscored(self, version: int) -> dict[int, str]:
        """Returns why the clip of `version` has no score: place in `prompts` -> reason."""
        reasons = self.exchange.unscored(Purpose.EVAL, version)
        places = {(place, prompt.id): place for place, prompt in enumerate(self.prompts)}
        return {places[name]: reason for name, reason in reasons.items() if name in places}

    def left_out(self, versions: Mapping[str, int]) -> list[dict[str, str]]:
        """Returns the prompts without a score on a side: ``side``, ``id``, ``text``, ``reason``.

        `versions` are the versions that were evaluated, by the side of the comparison.
        """
        return [
            {"side": side, "id": self.prompts[place].id, "text": self.prompts[place].text, "reason": reason}
            for side, version in versions.items()
            for place, reason in sorted(self.unscored(version).items())
        ]

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
        asked = {(prompt.ordinal, prompt.id) for prompt in self.prompts}
        results = self.exchange.results(Purpose.EVAL, version)
        found = [one for one in results if (one.prompt.ordinal, one.prompt.id) in asked]
        return sorted(found, key=lambda one: one.prompt.ordinal)
