"""Sampling and scoring the held-out prompts under one version, through an exchange."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.prompts import PromptSource
from actors.sampler import Sampler
from common.config import RunConfig
from common.exchange.client import Exchange, RunExchange, ScoredCandidate
from common.messages import Purpose
from common.metrics import Timers
from common.weights import WeightStore
from deploy.progress import Progress, Status
from rewarders.rewarder import Rewarder


class Stuck(RuntimeError):
    """Nobody can work although the end is not reached."""


@dataclass
class HeldOut:
    """Evaluates versions of `store`. `between` is called before every unit of work and may raise to stop it."""

    config: RunConfig
    prompts: PromptSource
    sampler: Sampler
    rewarder: Rewarder
    exchange: RunExchange
    store: WeightStore
    timers: Timers
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
            self.sampler.load(*self.store.load(version))
        while len(found) < len(prompts):
            before = self.exchange.counts(Purpose.EVAL)
            self._round(len(found), len(prompts), phase)
            found = self._found(version)
            if len(found) < len(prompts) and self.exchange.counts(Purpose.EVAL) == before:
                counts = {state.value: count for state, count in before.items() if count}
                raise Stuck(f"{phase}: {len(found)} of {len(prompts)} prompts are done, no work is left: {counts}")
        return found, missing

    def _round(self, have: int, total: int, phase: str) -> None:
        # Clips sampled before a kill are scored first. At most what is missing is sampled: the sampler would go on to
        # training prompts when no held-out one is left.
        self.score()
        began = time.perf_counter()
        for count in range(1, total - have + 1):
            if not self.unit("sampling", self.sampler.work):
                break
            rate = count / max(time.perf_counter() - began, 1e-6)
            left = (total - have - count) / rate
            self.progress.update(Status(phase, have + count, total, groups_per_second=rate, eta=left))
        self.score()

    def _found(self, version: int) -> list[ScoredCandidate]:
        wanted = self.config.evaluation.prompts
        found = [one for one in self.exchange.results(Purpose.EVAL, version) if one.prompt.ordinal < wanted]
        return sorted(found, key=lambda one: one.prompt.ordinal)

    def score(self) -> int:
        """Let the rewarder work while there are clips; the number of its batches."""
        batches = 0
        while self.unit("scoring", self.rewarder.work):
            batches += 1
        return batches

    def unit(self, name: str, work: Callable[[Exchange], bool]) -> bool:
        """One timed unit of a worker's work."""
        self.between()
        with self.timers.measure(name):
            return work(self.exchange)
