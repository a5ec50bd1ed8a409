"""A process that samples."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from actors.loop import SamplingLoop
from common.config import RunConfig
from common.exchange.remote import RemoteExchange
from common.exporter import Value
from common.journal import measured
from common.push import WeightPuller
from common.remote_journal import RemoteJournal
from common.telemetry import SAMPLER
from deploy.messages import Addresses
from deploy.roles import sampler_of
from deploy.workers.base import Worker


class SamplerWorker(Worker):
    """Samples with the version that the exchange wants, as soon as it is staged; until then with the one it holds."""

    def __init__(self, config: RunConfig, name: str) -> None:
        super().__init__(config, name)
        self._make = sampler_of(config)

    def work(self, addresses: Addresses, exchange: RemoteExchange, journal: RemoteJournal, stack: ExitStack) -> None:
        """See `Worker.work`."""
        sampler = self._make(self.name)
        exchange.keep_empty_prompt(sampler.empty_prompt_embeds())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"douga-{self.name}-")))
        puller = stack.enter_context(
            WeightPuller(addresses.weights, addresses.notes, scratch, self.name, addresses.key, self.instruments)
        )
        self.instruments.read(lambda: [Value("douga_policy_version", sampler.version, {"role": SAMPLER})])
        while not self.stopping.is_set():
            wanted = exchange.wanted_version()
            if wanted != sampler.version and puller.staged(wanted):
                measured(journal, self.name, "loading", partial(_load, sampler, puller, wanted))
            self.rest(measured(journal, self.name, "sampling", lambda: sampler.work(exchange)))


def _load(sampler: SamplingLoop, puller: WeightPuller, version: int) -> bool:
    sampler.load(*puller.load(version))
    return True
