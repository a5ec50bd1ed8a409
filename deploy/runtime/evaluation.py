"""Held-out evaluation of a weight version: enqueues the prompts and ends when all of them are scored.

All modes share one class. They differ in where the work is done:

```
serial, douga evaluate   LocalWorkers.evaluate: samples and scores in this process
cluster                  ClusterRunLoop only waits: samplers and rewarders are other processes
```
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.errors import RunFailed
from common.exchange.api import OVER, HubExchange, ScoredCandidate, State
from common.exchange.local import LocalExchange
from common.messages import Prompt, Purpose
from common.roles import EVALUATING_ALIGNED, EVALUATING_BASE
from common.weights.store import WeightStore
from deploy.results import comparison
from deploy.run_dir.journal import RunJournal
from deploy.run_dir.progress import Progress, ThroughputTracker
from deploy.run_dir.source import chosen_version
from deploy.runtime.factories import open_inputs, open_scorers
from deploy.runtime.workers.scratch import scratch

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
        return self.source.heldout(self.config.evaluation.prompts, self.config.seed)

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


def evaluate_again(folder: Path, config: RunConfig, version: int | None, progress: Progress) -> dict[str, Any]:
    """Repeats the held-out comparison of a run with `version` (None: the newest). Only reads the run folder.

    Returns the result of `comparison.conclude`. The clips are stored in a scratch exchange that is deleted at the end.
    """
    from deploy.runtime.workers.local import LocalWorkers  # noqa: PLC0415 - it imports this module

    store = WeightStore(folder / "weights")
    chosen = chosen_version(store, config, version)
    prompts = open_inputs(config)
    sampler, rewarder = open_scorers(config)
    manifest = store.manifest(chosen)
    with ExitStack() as stack:
        scratch_folder = stack.enter_context(scratch("evaluate"))
        exchange = LocalExchange(scratch_folder, config, prompts)
        stack.callback(exchange.close)
        workers = LocalWorkers(
            config=config,
            sampler=sampler,
            rewarder=rewarder,
            exchange=exchange,
            store=store,
            journal=stack.enter_context(RunJournal(scratch_folder, dict)),
            progress=progress,
            between=lambda: None,
        )
        evaluation = workers.evaluation(prompts)
        base, _ = evaluation.evaluate(BASE, EVALUATING_BASE)
        if chosen != BASE:
            exchange.announce(manifest)
        aligned, _ = evaluation.evaluate(chosen, EVALUATING_ALIGNED)
    return comparison.conclude(comparison.by_prompt(base, aligned, config))
