"""Sampling and scoring held-out prompts and probes, by a sampler and a rewarder in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.loop import SamplingLoop
from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.errors import RunFailed
from common.exchange.api import RunExchange, ScoredCandidate, State
from common.exchange.local import LocalExchange
from common.messages import Purpose
from common.roles import EVALUATING_ALIGNED, EVALUATING_BASE
from common.weights.store import WeightStore
from deploy.results import comparison
from deploy.run_dir.journal import Journal, RunJournal, measured
from deploy.run_dir.progress import Progress, ThroughputTracker
from deploy.run_dir.source import chosen_version
from deploy.runtime.factories import open_inputs, open_scorers
from deploy.runtime.oom import needed_by
from deploy.runtime.run_loop import BASE, Stuck, heldout_found
from deploy.runtime.scratch import scratch
from rewarders.interface import JudgeFailed
from rewarders.loop import ScoringLoop

PROBING = "probing"
OPEN = (State.PENDING, State.SAMPLING, State.SAMPLED, State.SCORING)


@dataclass
class HeldOut:
    """Evaluates versions of `store`. `between` is called before every unit of work and may raise to stop it."""

    config: RunConfig
    prompts: PromptSource
    sampler: SamplingLoop
    rewarder: ScoringLoop
    exchange: RunExchange
    store: WeightStore
    journal: Journal
    progress: Progress
    between: Callable[[], None]

    def evaluate(self, version: int, phase: str) -> tuple[list[ScoredCandidate], int]:
        """All held-out clips under `version`, by prompt, and how many of them were made now.

        What the ledger already has is not made again, so an evaluation that was cut goes on where it was.
        """
        prompts = self.prompts.heldout(self.config.evaluation.prompts, self.config.seed)
        self.exchange.enqueue(prompts, version)
        found = self._found(version)
        missing = len(prompts) - len(found)
        if missing and self.sampler.version != version:
            self.load(version)
        while len(found) < len(prompts):
            before = self.exchange.counts(Purpose.EVAL)
            self._round(len(found), len(prompts), phase)
            found = self._found(version)
            if len(found) < len(prompts) and self.exchange.counts(Purpose.EVAL) == before:
                counts = {state.value: count for state, count in before.items() if count}
                raise Stuck(f"{phase}: {len(found)} of {len(prompts)} prompts are done, no work is left: {counts}")
        return found, missing

    def probe(self) -> None:
        """Sample and score the probes that wait, under whichever version each is for."""
        total = waiting = self._probes(*OPEN)
        pace = ThroughputTracker(self.config)
        while waiting:
            sampled = bool(self._probes(State.PENDING)) and self._sample_probe()
            if not self.score() and not sampled:
                raise Stuck(f"{PROBING}: {waiting} of {total} probes wait, no work is left")
            waiting = self._probes(*OPEN)
            pace.groups = total - waiting
            self.progress.update(pace.of_evaluation(PROBING, total - waiting, total))

    def _probes(self, *states: State) -> int:
        counts = self.exchange.counts(Purpose.PROBE)
        return sum(counts[state] for state in states)

    def _sample_probe(self) -> bool:
        version = self.exchange.wanted_version()
        if self.sampler.version != version:
            self.load(version)
        return self.sample()

    def _round(self, have: int, total: int, phase: str) -> None:
        # Clips sampled before a kill are scored first. At most what is missing is sampled: the sampler would go on to
        # training prompts when no held-out one is left.
        self.score()
        pace = ThroughputTracker(self.config)
        while have + pace.groups < total and self.sample():
            pace.groups += 1
            self.progress.update(pace.of_evaluation(phase, have + pace.groups, total))
        self.score()

    def _found(self, version: int) -> list[ScoredCandidate]:
        return heldout_found(self.exchange, version, self.config.evaluation.prompts)

    def load(self, version: int) -> None:
        """Let the sampler swap in a version of the store."""
        with needed_by(self.sampler.worker, self.config):
            measured(self.journal, self.sampler.worker, "loading", lambda: self._load(version))

    def _load(self, version: int) -> bool:
        self.sampler.load(*self.store.load(version))
        return True

    def sample(self) -> bool:
        """Let the sampler make one group, if it has leave."""
        self.between()
        with needed_by(self.sampler.worker, self.config):
            return measured(self.journal, self.sampler.worker, "sampling", lambda: self.sampler.work(self.exchange))

    def score(self) -> int:
        """Let the rewarder work while there are clips; the number of its batches."""
        batches = 0
        self.between()
        while self._score_batch():
            batches += 1
            self.between()
        return batches

    def _score_batch(self) -> int:
        try:
            with needed_by(self.rewarder.worker, self.config):
                return measured(
                    self.journal, self.rewarder.worker, "scoring", lambda: self.rewarder.work(self.exchange)
                )
        except JudgeFailed as error:
            raise RunFailed(f"{error}; once it answers, the same command goes on") from None


def evaluate_again(folder: Path, config: RunConfig, version: int | None, progress: Progress) -> dict[str, Any]:
    """Repeats the held-out comparison of a run under `version` (None: the newest). Only reads the run's folder.

    Returns what `comparison.conclude` does. The clips are made in a scratch exchange that is deleted at the end.
    """
    store = WeightStore(folder / "weights")
    chosen = chosen_version(store, config, version)
    prompts = open_inputs(config)
    sampler, rewarder = open_scorers(config)
    manifest = store.manifest(chosen)
    with ExitStack() as stack:
        aside = stack.enter_context(scratch("evaluate"))
        exchange = LocalExchange(aside, config, prompts)
        stack.callback(exchange.close)
        heldout = HeldOut(
            config=config,
            prompts=prompts,
            sampler=sampler,
            rewarder=rewarder,
            exchange=exchange,
            store=store,
            journal=stack.enter_context(RunJournal(aside, dict)),
            progress=progress,
            between=lambda: None,
        )
        base, _ = heldout.evaluate(BASE, EVALUATING_BASE)
        if chosen != BASE:
            exchange.announce(manifest)
        aligned, _ = heldout.evaluate(chosen, EVALUATING_ALIGNED)
    return comparison.conclude(comparison.by_prompt(base, aligned, config))
