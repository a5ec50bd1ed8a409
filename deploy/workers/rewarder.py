"""A process that scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from common.config import RunConfig
from common.exchange.remote import RemoteExchange
from common.journal import RemoteJournal, measured
from deploy.messages import Addresses
from deploy.workers.base import Worker
from rewarders.anime import load_heads
from rewarders.base import Reward
from rewarders.rewarder import rewarder_of


class RewarderWorker(Worker):
    """Scores whatever clips there are. `rewards` replaces the heads of ``config.reward.path``."""

    def __init__(self, config: RunConfig, name: str, rewards: Sequence[Reward] | None = None) -> None:
        super().__init__(config, name)
        self._rewards = rewards

    def work(self, addresses: Addresses, exchange: RemoteExchange, journal: RemoteJournal, stack: ExitStack) -> None:
        """See `Worker.work`."""
        reward, device = self.config.reward, self.config.model.device
        heads = load_heads(reward.path, device) if self._rewards is None else self._rewards
        rewarder = rewarder_of(heads, reward, self.name)
        while not self.stopping.is_set():
            self.rest(measured(journal, self.name, "scoring", lambda: rewarder.work(exchange)))
