"""Sampler and rewarder in the calling process, for serial runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.loop import SamplingLoop
from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.errors import RunFailed
from common.exchange.api import RunExchange, State
from common.messages import Purpose
from common.weights.store import WeightStore
from deploy.run_dir.journal import Journal, timed
from deploy.run_dir.progress import Progress, ThroughputTracker
from deploy.runtime.evaluation import HeldOutEvaluation, StuckError
from deploy.runtime.oom import needed_by
from rewarders.interface import JudgeFailedError
from rewarders.loop import ScoringLoop

PROBING = "probing"
OPEN = (State.PENDING, State.SAMPLING, State.SAMPLED, State.SCORING)


@dataclass
class LocalWorkers:
    """A sampler and a rewarder that load versions from `store`.

    `between` is called before every unit of work and may raise to stop, `scored` when no clip is left to score.
    """

    config: RunConfig
    sampler: SamplingLoop
    rewarder: ScoringLoop
    exchange: RunExchange
    store: WeightStore
    journal: Journal
    progress: Progress
    between: Callable[[], None]
    scored: Callable[[], None]

    def evaluation(self, source: PromptSource) -> HeldOutEvaluation:
        """Returns the evaluation on the held-out prompts of `source`, with these workers."""
        return HeldOutEvaluation(
            config=self.config,
            source=source,
            exchange=self.exchange,
            progress=self.progress,
            work=self.evaluate,
        )

    def evaluate(self, version: int, most: int, show: Callable[[], None]) -> bool:
        """Samples and scores at most `most` held-out or collected prompts with `version`. Returns False if there was no
        work.

        Scores clips left over from an interrupted start first. Samples no more groups than there are such pending
        prompts, because the exchange would lease training prompts after the last one.
        """
        done = self.score()
        waiting = min(most, sum(self._counted(one, State.PENDING) for one in (Purpose.EVAL, Purpose.COLLECT)))
        if waiting and self.sampler.version != version:
            self.load(version)
        for _ in range(waiting):
            if not self.sample():
                break
            done += 1
            show()
        return bool(done + self.score())

    def probe(self) -> None:
        """Samples and scores the pending probes, each with the version that it is for."""
        total = waiting = self._counted(Purpose.PROBE, *OPEN)
        pace = ThroughputTracker(self.config)
        while waiting:
            sampled = bool(self._counted(Purpose.PROBE, State.PENDING)) and self._sample_probe()
            if not self.score() and not sampled:
                raise StuckError(f"{PROBING}: {waiting} of {total} probes are pending, but no work is left")
            waiting = self._counted(Purpose.PROBE, *OPEN)
            pace.groups = total - waiting
            self.progress.update(pace.of_evaluation(PROBING, total - waiting, total))

    def _counted(self, purpose: Purpose, *states: State) -> int:
        counts = self.exchange.counts(purpose)
        return sum(counts[state] for state in states)

    def _sample_probe(self) -> bool:
        version = self.exchange.wanted_version()
        if self.sampler.version != version:
            self.load(version)
        return self.sample()

    def load(self, version: int) -> None:
        """Loads a version of the store into the sampler."""
        with needed_by(self.sampler.worker, self.config):
            timed(self.journal, self.sampler.worker, "loading", lambda: self._load(version))

    def _load(self, version: int) -> bool:
        self.sampler.load(*self.store.load(version))
        return True

    def sample(self) -> bool:
        """Samples all candidates of one group, if the exchange admits it. Returns whether it did."""
        sampled = self._sample_micro_batch()
        while any(self._counted(purpose, State.SAMPLING) for purpose in Purpose):
            self._sample_micro_batch()
        if sampled and self.rewarder.doubts:  # a reward that can score nothing ends the run at the first clip
            self.score()
        return bool(sampled)

    def _sample_micro_batch(self) -> int:
        self.between()
        with needed_by(self.sampler.worker, self.config):
            return timed(self.journal, self.sampler.worker, "sampling", lambda: self.sampler.work(self.exchange))

    def score(self) -> int:
        """Scores until there are no clips left. Returns the number of batches."""
        batches = 0
        self.between()
        while self._score_batch():
            batches += 1
            self.between()
        self.scored()
        return batches

    def _score_batch(self) -> int:
        try:
            with needed_by(self.rewarder.worker, self.config):
                return timed(self.journal, self.rewarder.worker, "scoring", lambda: self.rewarder.work(self.exchange))
        except JudgeFailedError as error:
            raise RunFailed(f"{error}; once it answers, the same command resumes the run") from None
