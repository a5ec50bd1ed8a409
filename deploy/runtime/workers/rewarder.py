"""The process of one rewarder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from common.config import RunConfig
from common.exchange.api import Work
from common.exchange.remote import RemoteExchange
from deploy.run_dir.journal import timed
from deploy.runtime.factories import rewarder_of
from deploy.runtime.messages import Addresses
from deploy.runtime.workers.base import Worker
from deploy.runtime.workers.remote_journal import RemoteJournal
from rewarders.interface import Judge, Reward


class RewarderWorker(Worker):
    """Scores clips as they become available. `rewards` replaces the heads and judges of ``config.reward``."""

    def __init__(self, config: RunConfig, name: str, rewards: Sequence[Reward | Judge] | None = None) -> None:
        super().__init__(config, name)
        self._make = rewarder_of(config, rewards)

    def work(self, addresses: Addresses, exchange: RemoteExchange, journal: RemoteJournal, stack: ExitStack) -> None:
        """See `Worker.work`."""
        rewarder, patience = self._make(self.name), self.config.reward.batch_seconds
        while not self.stopping.is_set():
            tasks = rewarder.gather(exchange, patience, self.stopping.wait)
            scored = timed(journal, self.name, "scoring", partial(rewarder.finish, exchange, tasks))
            self.wait_for(Work.SCORING, exchange, scored)
