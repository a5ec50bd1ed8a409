"""The process of one sampler."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial

from actors.loop import SamplingLoop
from common.config import RunConfig
from common.exchange.api import Work
from common.exchange.remote import RemoteExchange
from common.roles import SAMPLER
from common.weights.sync import WeightPuller
from deploy.observability.exporter import GaugeSample
from deploy.run_dir.journal import timed
from deploy.runtime.factories import sampler_of
from deploy.runtime.messages import Addresses
from deploy.runtime.workers.base import Worker
from deploy.runtime.workers.remote_journal import RemoteJournal
from deploy.runtime.workers.scratch import scratch, scratch_folders

log = logging.getLogger(__name__)


class SamplerWorker(Worker):
    """Samples with the version that the exchange wants once it is staged, and with the newest staged one until then.

    If its scratch disk takes no new version, it goes on with the old one while that is not too stale. Then it ends with
    a `ScratchError`, and the driver decides about a restart.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        super().__init__(config, name)
        self._make = sampler_of(config)

    def work(self, addresses: Addresses, exchange: RemoteExchange, journal: RemoteJournal, stack: ExitStack) -> None:
        """See `Worker.work`."""
        sampler = self._make(self.name)
        exchange.keep_empty_prompt(sampler.empty_prompt_embeds())
        folder = stack.enter_context(scratch(self.name))
        asking = stack.enter_context(RemoteExchange.at(addresses.exchange, self.name, addresses.key))
        puller = stack.enter_context(
            WeightPuller(
                addresses.weights,
                asking.wanted_version,
                folder,
                self.name,
                addresses.key,
                self.metrics,
                nearby=scratch_folders,
                held=sampler.base_weights,
            )
        )
        self.metrics.read(lambda: [GaugeSample("douga_policy_version", sampler.version, {"role": SAMPLER})])
        while not self.stopping.is_set():
            wanted = exchange.wanted_version(sampler.version)
            version = puller.choose(sampler.version, wanted)
            if version != sampler.version:
                timed(journal, self.name, "loading", partial(_load, sampler, puller, version))
                continue  # meanwhile there may be a newer one
            sampled = timed(journal, self.name, "sampling", lambda: sampler.work(exchange))
            if not sampled:
                puller.check_disk()
            if wanted == sampler.version:
                self.wait_for(Work.SAMPLING, exchange, sampled)
            else:  # its weights are still being staged here
                self.rest(sampled)


def _load(sampler: SamplingLoop, puller: WeightPuller, version: int) -> bool:
    before = sampler.version
    sampler.load(*puller.load(version))
    log.info("version %d loaded, replacing version %d", version, before)
    return True
