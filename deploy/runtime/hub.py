"""The central process of a cluster run: run folder, exchange, weights, journal and run loop.

```
   workers ──ZMQ──> exchange, journal, weights (a thread each)          driver ──> status, release, stop
                        │                                                            │
                        ▼                                                            ▼
                    run folder  <──────────────── ClusterRunLoop: waits for the workers
```

The learner's ranks live on the same node and write weights and checkpoints into the same folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

from actors.prompts.source import PromptSource
from common.config import RunConfig
from common.errors import ConfigError
from common.errors.endings import Ending
from common.exchange.remote import exchange_service
from common.messages import LogEntry
from common.roles import HUB
from common.rpc.curve import KEYS, WORKER, ServerKeys, is_loopback, make_or_read
from common.rpc.server import Service, serving
from common.weights.source import weight_service
from deploy.guardrails.monitor import GuardrailMonitor, Probes, open_probes
from deploy.logs.files import DRIVER, LogFiles
from deploy.logs.process import errors_logged, logging_to
from deploy.logs.redaction import Redactor, secrets_of
from deploy.planning.free_space import check_space
from deploy.run_dir import layout
from deploy.run_dir.endings import ending_recorded, record_ending, record_kill
from deploy.run_dir.journal import RunJournal
from deploy.run_dir.jsonl import EVENTS, JsonLines
from deploy.runtime.cluster_run_loop import BufferedProgress, ClusterRunLoop
from deploy.runtime.external_workers import ExternalWorkers, registry_service
from deploy.runtime.factories import open_inputs
from deploy.runtime.messages import RENDEZVOUS_PREFIX, Addresses, HubReady, HubStatus, Outcome
from deploy.runtime.run_loop import queue
from deploy.runtime.run_metrics import MeteredExchange, RunMetrics
from deploy.runtime.workers.remote_journal import journal_service
from deploy.runtime.workers.threads import set_worker_threads
from learner import checkpoint

log = logging.getLogger(__name__)


class Hub:
    """Opens a run folder, serves it to workers, and drives the run to its end.

    Call `open`, then `run`, in one thread; the other methods are safe to call from other threads. `close` ends the
    services.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._stack, self._stop, self._progress = ExitStack(), Event(), BufferedProgress()
        self._services: dict[str, Service] = {}

    def open(self, host: str = "127.0.0.1") -> HubReady | Outcome:
        """Claims the folder and serves it at `host`. Returns an `Outcome` if the run has finished already.

        Raises `ConfigError` for bad input.
        """
        done = layout.finished_result(self.config)
        if done is not None:
            return Outcome(done["step"], done)
        try:
            return self._open(self._stack, host)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, stack: ExitStack, host: str) -> HubReady:
        config, left_out = self.config, []
        set_worker_threads(config)  # a held-out judge computes in this process
        prompts = open_inputs(config, left_out.append)
        probes = open_probes(config, prompts)
        check_space(config, left_out.append)
        folder = stack.enter_context(layout.claim(config, left_out.append)).resolve()
        self._open_logs(stack, folder)
        record_kill(folder)
        for line in left_out:
            log.warning("%s", line)
            self._progress.message(line)
        with ending_recorded(folder), errors_logged(HUB):
            return self._start(stack, host, folder, prompts, probes)

    def _open_logs(self, stack: ExitStack, folder: Path) -> None:
        self._redact = Redactor(secrets_of(self.config, os.environ))
        self._logs = LogFiles(folder, self.config, self._redact)
        own = self._logs.of(HUB)
        stack.callback(own.close)
        stack.enter_context(logging_to(own, self.config, HUB))

    def _start(
        self, stack: ExitStack, host: str, folder: Path, prompts: PromptSource, probes: Probes | None
    ) -> HubReady:
        config, saved = self.config, max(checkpoint.steps(folder / "checkpoints"), default=0)
        layout.check_steps(config, saved)
        _sweep(folder)
        stack.callback(_sweep, folder)
        keys = self._keys(host, folder)
        self._run_metrics = run_metrics = RunMetrics(config, folder)
        self._exchange = MeteredExchange(folder, config, prompts, run_metrics)
        stack.callback(self._exchange.close)
        self._exchange.rollback(saved)  # before sampling starts, undo what happened after the checkpoint
        if saved:
            log.info("resumed from the checkpoint of step %d; later uses of pairs are rolled back", saved)
        journal = self._journal(stack, folder)
        events = stack.enter_context(JsonLines(folder / EVENTS))
        self._run_loop = self._make_run_loop(folder, events, journal, prompts, probes, saved)
        if not config.simulate:
            self._exchange.on_scores = self._run_loop.pair_watch.seen
        with _ports_named(config.cluster.port):
            addresses = self._serve(stack, host, folder, journal, keys)
            self._serve_registration(stack, host, addresses, keys)
        run_metrics.watch(self._run_loop, self._error_replies)
        run_metrics.export(stack, host)
        return HubReady(addresses, not config.collect.prompts and self._run_loop.trained() is None)

    def _keys(self, host: str, folder: Path) -> ServerKeys | None:
        """Returns None on loopback, which only this machine can reach, unless `cluster.keys` is "always"."""
        if self.config.cluster.keys != "always" and is_loopback(host):
            return None
        keys = make_or_read(folder / KEYS)
        for secret in (keys.secret, keys.worker.secret):
            self._redact.hide(secret)
        return keys

    def _journal(self, stack: ExitStack, folder: Path) -> RunJournal:
        journal = RunJournal(
            folder,
            lambda: queue(self._exchange),
            self._run_metrics,
            timeline_bytes=self.config.timeline_bytes,
            logs=self._logs.write,
        )
        return stack.enter_context(journal)

    def _make_run_loop(
        self,
        folder: Path,
        events: JsonLines,
        journal: RunJournal,
        prompts: PromptSource,
        probes: Probes | None,
        saved: int,
    ) -> ClusterRunLoop:
        config = self.config
        guardrails = GuardrailMonitor(
            config=config,
            folder=folder,
            exchange=self._exchange,
            probes=probes,
            events=events,
            notify=self._progress.message,
            on_reading=self._run_metrics.reading,
        )
        return ClusterRunLoop(
            config=config,
            folder=folder,
            exchange=self._exchange,
            events=events,
            guardrails=guardrails,
            journal=journal,
            prompts=prompts,
            saved=saved,
            progress=self._progress,
            stop=self._stop,
        )

    def _serve(
        self, stack: ExitStack, host: str, folder: Path, journal: RunJournal, keys: ServerKeys | None
    ) -> Addresses:
        """Starts the services for workers."""
        services = {
            "exchange": exchange_service(self._exchange, self._at(host, 1), keys=keys),
            "journal": journal_service(journal, self._at(host, 2), keys),
            "weights": weight_service(self._run_loop.store, self._at(host, 3), keys),
        }
        at = {name: stack.enter_context(serving(service)).address for name, service in services.items()}
        self._services |= services
        key = keys.worker if keys else None
        return Addresses(exchange=at["exchange"], journal=at["journal"], weights=at["weights"], folder=folder, key=key)

    def _serve_registration(self, stack: ExitStack, host: str, addresses: Addresses, keys: ServerKeys | None) -> None:
        self._external = ExternalWorkers(self.config, addresses, self._release)
        registry = stack.enter_context(serving(registry_service(self._external, self._at(host, 0), keys)))
        self._services["registry"] = registry
        stack.callback(self._external.announce_end)  # runs before the services stop
        shown = f" --key {addresses.folder / KEYS / WORKER}" if keys else ""
        invitation = f"to add a worker: douga worker sampler --connect {registry.address}{shown}"
        log.info("%s", invitation)
        self._progress.message(invitation)

    def _error_replies(self) -> dict[str, int]:
        return {name: service.counts["error"] for name, service in self._services.items()}

    def _at(self, host: str, number: int) -> str:
        """Returns the address to bind service number `number` to. With `cluster.port` 0 the system chooses the port."""
        port = self.config.cluster.port
        shown = f"[{host}]" if ":" in host else host
        return f"tcp://{shown}:{port + number if port else '*'}"

    def run(self) -> Outcome:
        """Runs from the state of the folder to the end of the run, or to `stop`."""
        with errors_logged(HUB):
            return self._run_loop.run()

    def status(self) -> HubStatus:
        """Returns the current status, and the lines since the last call."""
        self._run_metrics.targets.hide(self._external.absent())
        status, lines = self._progress.take()
        return HubStatus(status=status, lines=lines, samplers=self._external.count("sampler"))

    def release(self, worker: str) -> None:
        """Releases the leases of a crashed worker, so that others take over its work."""
        log.warning("%s crashed; its leases are released", worker)
        self._run_metrics.died(worker)
        self._release(worker)

    def _release(self, worker: str) -> None:
        self._exchange.release(worker)
        self._run_metrics.targets.remove([worker])

    def log_driver(self, entries: Sequence[LogEntry]) -> None:
        """Writes the driver's log records; the driver may have no access to the run folder."""
        self._logs.write(DRIVER, entries)

    def found_ray(self, exporters: list[str]) -> None:
        """Adds Ray's own exporters to the scrape targets. `exporters` are ``HOST:PORT``."""
        self._run_metrics.targets.ray(exporters)

    def ended(self, ending: Ending) -> None:
        """Records why the driver ends a run that has not finished."""
        log.error("the run ends: %s", ending.line)
        record_ending(self._run_loop.folder, ending)

    def stop(self) -> None:
        """Makes `run` return soon. Stop the workers first: they need the services until they end."""
        self._stop.set()

    def close(self) -> None:
        """Ends the services and unlocks the run folder."""
        self._stack.close()


@contextmanager
def _ports_named(first: int) -> Iterator[None]:
    """Raises `ConfigError` for the `OSError` of a service whose port is in use or not allowed."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cluster.port = {first}: this and the next three ports must be free: {error}; 0 picks free ports"
        ) from None


def _sweep(folder: Path) -> None:
    """Removes the rendezvous files of earlier groups of ranks."""
    for file in folder.glob(f"{RENDEZVOUS_PREFIX}*"):
        file.unlink(missing_ok=True)
