"""The process of one learner rank."""

from __future__ import annotations

from contextlib import ExitStack

from common.config import RunConfig, algorithm_class
from common.exchange.api import Work
from common.exchange.remote import RemoteExchange
from common.messages import StepStats
from deploy.run_dir.journal import timed
from deploy.run_dir.layout import check_steps
from deploy.runtime.factories import learner_of
from deploy.runtime.messages import Addresses
from deploy.runtime.workers.base import Worker
from deploy.runtime.workers.remote_journal import RemoteJournal
from learner.engines.base import NonFiniteLossError
from learner.loop import LearningLoop


class LearnerWorker(Worker):
    """One rank. Rank 0 talks to the exchange; all ranks take every step together, and agree when to stop.

    `rendezvous` is the name of the rendezvous file in the run folder, which all ranks share.
    """

    def __init__(self, config: RunConfig, name: str, rank: int, rendezvous: str) -> None:
        super().__init__(config, name)
        self._make = learner_of(config)
        self._rank, self._rendezvous = rank, rendezvous

    def work(self, addresses: Addresses, exchange: RemoteExchange, journal: RemoteJournal, stack: ExitStack) -> None:
        """See `Worker.work`."""
        config, own = self.config, exchange if self._rank == 0 else None
        if config.simulate and own is None:
            self.stopping.wait()  # a simulated learner works in rank 0; the others only hold their place
            return
        self._join_group(f"file://{addresses.folder}/{self._rendezvous}")
        learner = self._make(addresses.folder, self.name)
        stack.callback(learner.close)
        learner.meters = self.metrics
        learner.resume(own)
        check_steps(config, learner.step)
        if self._needs_empty_prompt and not self._take_empty_prompt(learner, exchange):
            return
        while learner.step < config.steps:
            if learner.any(self.stopping.is_set()):
                learner.pause(own)
                return
            stats = timed(journal, self.name, "learning", lambda: self._learn(learner, own, journal))
            if stats is not None and self._rank == 0:
                journal.step(stats)
            self.wait_for(Work.TRAINING, own, stats)
        trained = learner.finish(own)
        if self._rank == 0:
            journal.trained(trained)

    def _learn(self, learner: LearningLoop, own: RemoteExchange | None, journal: RemoteJournal) -> StepStats | None:
        try:
            return learner.work(own)
        except NonFiniteLossError:
            if self._rank == 0:
                journal.not_finite(self.name)
            raise

    def _join_group(self, rendezvous: str) -> None:
        if not self.config.simulate and self.config.cluster.learner.count > 1:
            from learner.engines.zero import join_group  # noqa: PLC0415 - only several real ranks need a process group

            join_group(self._rank, self.config.cluster.learner.count, rendezvous, self.config.model.device)

    @property
    def _needs_empty_prompt(self) -> bool:
        """Whether the learner drops captions, or denoises with guidance."""
        guided = algorithm_class(self.config.algorithm.name).needs_rollouts and self.config.sampler.guidance > 1
        return guided or self.config.learner.caption_drop > 0

    def _take_empty_prompt(self, learner: LearningLoop, exchange: RemoteExchange) -> bool:
        """Waits until a sampler has encoded the empty caption. Returns False if the run is stopped before."""
        while True:
            learner.empty_embeds = exchange.empty_prompt()
            if learner.any(self.stopping.is_set()):
                return False
            if not learner.any(learner.empty_embeds is None):
                return True
            self.rest(None)
