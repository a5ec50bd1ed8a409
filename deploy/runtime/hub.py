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
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock

from actors.prompts.source import PromptSource
from common.config import RunConfig, to_toml
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.remote import exchange_service
from common.exchange.sampling import RefusalReason
from common.messages import LogEntry, Prompt, TrainingFinished
from common.roles import HUB
from common.rpc.curve import KEYS, WORKER, ServerKeys, is_loopback, make_or_read
from common.rpc.server import Service, serving
from common.weights.sync import weight_service
from deploy.guardrails.monitor import GuardrailMonitor, Probes, open_probes
from deploy.logs.files import DRIVER, LogFiles
from deploy.logs.process import errors_logged, logging_to
from deploy.logs.redaction import Redactor, secrets_of
from deploy.run_dir import layout
from deploy.run_dir.journal import RunJournal
from deploy.run_dir.jsonl import EVENTS, JsonLines
from deploy.run_dir.progress import Status, ThroughputTracker
from deploy.runtime.evaluation import HeldOutEvaluation, StuckError
from deploy.runtime.external_workers import ExternalWorkers, registry_service
from deploy.runtime.factories import open_inputs
from deploy.runtime.messages import RENDEZVOUS_PREFIX, Addresses, HubReady, HubStatus, Outcome
from deploy.runtime.remote_journal import journal_service
from deploy.runtime.run_loop import RunLoop, Stopped, queue
from deploy.runtime.run_metrics import MeteredExchange, RunMetrics
from learner import checkpoint

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # between two polls of the exchange
MAX_LOST_BATCHES = 50  # batches of groups that tie, fail or expire without a step before the run counts as stuck
FULL_SECONDS = 30.0  # without any work before exchange.max_bytes counts as too small
REFUSED_SECONDS = 60.0  # without a new group before refused admission is logged
SAMPLED = (State.SAMPLED, State.SCORING, State.READY, State.TRAINING, State.TRAINED, State.TIED, State.EXPIRED)
BUSY = (State.SAMPLING, State.SAMPLED, State.SCORING, State.TRAINING)


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
        prompts = open_inputs(config, left_out.append)
        probes = open_probes(config, prompts)
        folder = stack.enter_context(layout.claim(config)).resolve()
        self._open_logs(stack, folder)
        for line in left_out:
            log.warning("%s", line)
            self._progress.message(line)
        with errors_logged(HUB):
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
        addresses = self._serve(stack, host, folder, journal, keys)
        self._serve_registration(stack, host, addresses, keys)
        run_metrics.watch(self._run_loop, self._error_replies)
        run_metrics.export(stack, host)
        return HubReady(addresses, self._run_loop.trained() is None)

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
            heldout=prompts.heldout(config.evaluation.prompts, config.seed),
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
        return f"tcp://{host}:{port + number if port else '*'}"

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

    def stop(self) -> None:
        """Makes `run` return soon. Stop the workers first: they need the services until they end."""
        self._stop.set()

    def close(self) -> None:
        """Ends the services and unlocks the run folder."""
        self._stack.close()


def _sweep(folder: Path) -> None:
    """Removes the rendezvous files of earlier groups of ranks."""
    for file in folder.glob(f"{RENDEZVOUS_PREFIX}*"):
        file.unlink(missing_ok=True)


class BufferedProgress:
    """A `Progress` that buffers lines and the newest status for the driver."""

    def __init__(self) -> None:
        self._lock, self._status, self._lines = Lock(), None, []

    def update(self, status: Status) -> None:
        """See `Progress`."""
        with self._lock:
            self._status = status

    def message(self, line: str) -> None:
        """See `Progress`."""
        with self._lock:
            self._lines.append(line)

    def take(self) -> tuple[Status | None, list[str]]:
        """Returns and clears the latest status (None: unchanged) and all lines."""
        with self._lock:
            taken = self._status, self._lines
            self._status, self._lines = None, []
        return taken


class RefusalWatch:
    """Logs when no group was admitted for `REFUSED_SECONDS`, and again each time that this time doubles."""

    def __init__(self) -> None:
        self._admitted, self._since, self._next = -1, 0.0, REFUSED_SECONDS

    def observe(self, refusal: str, admitted: int, now: float) -> None:
        """Updates at time `now` (seconds). `refusal` is why the last request was refused, "" if it was not."""
        if not refusal or admitted != self._admitted:
            self._admitted, self._since, self._next = admitted, now, REFUSED_SECONDS
        elif now - self._since >= self._next:
            log.warning("no group was admitted for %.0f s: %s", now - self._since, refusal)
            self._next *= 2


class ClusterRunLoop(RunLoop):
    """A run loop whose work is done by other processes: enqueues held-out prompts, waits, reports progress."""

    def __init__(
        self,
        *,
        config: RunConfig,
        folder: Path,
        exchange: LocalExchange,
        events: JsonLines,
        guardrails: GuardrailMonitor,
        journal: RunJournal,
        heldout: list[Prompt],
        saved: int,
        progress: BufferedProgress,
        stop: Event,
    ) -> None:
        evaluation = HeldOutEvaluation(
            config=config, prompts=heldout, exchange=exchange, progress=progress, work=self._wait_for_workers
        )
        super().__init__(
            config=config, folder=folder, exchange=exchange, events=events, guardrails=guardrails, evaluation=evaluation
        )
        self.exchange: LocalExchange = exchange
        self.journal, self.progress = journal, progress
        self._saved, self._stop = saved, stop  # step of the checkpoint that this start resumes from
        self._full_since: float | None = None
        self._refusals = RefusalWatch()

    @property
    def step(self) -> int:
        """See `RunLoop.step`."""
        return self.journal.last.step if self.journal.last else self._saved

    def _wait_for_workers(self, version: int, most: int, show: Callable[[], None]) -> bool:
        """See `evaluation.Work`. Only waits: the workers are other processes."""
        self._pause()
        return True

    def train(self) -> TrainingFinished:
        """See `RunLoop.train`."""
        self.events.write(event="resumed" if self._saved else "started", step=self._saved, config=to_toml(self.config))
        self.guardrails.advance()  # the base model's probes are sampled with its held-out prompts
        self.evaluate_base()
        pace, last, ended = ThroughputTracker(self.config), self.journal.last, self._ended()
        began = self._sampled()
        while (end := self._end()) is None:
            if self.journal.last is not None and self.journal.last is not last:
                last, ended = self.journal.last, self._ended()
                pace.add(last)
            pace.groups = self._sampled() - began
            self.progress.update(pace.status(self.step, self.exchange.current_version()))
            self._check_stuck(self._ended() - ended)
            self._check_full()
            self._refusals.observe(self.exchange.refusal, sum(self.exchange.counts().values()), time.monotonic())
            self._pause()
        return end

    def _end(self) -> TrainingFinished | None:
        """Returns the end of training, once no guardrail reading is due or in progress."""
        self.guardrails.advance()
        return None if self.guardrails.busy else self.journal.end

    def _sampled(self) -> int:
        counts = self.exchange.counts()
        return sum(counts[state] for state in SAMPLED)

    def _ended(self) -> int:
        counts = self.exchange.counts()
        return counts[State.TIED] + counts[State.FAILED] + counts[State.EXPIRED]

    def _check_stuck(self, ended: int) -> None:
        """Raises `StuckError` if too many groups were lost since the last step for another step to be likely."""
        if ended > MAX_LOST_BATCHES * self.config.learner.batch_size:
            why = next(iter(self.exchange.failures().values()), "none failed")
            ends = f"{ended} groups tied, failed or expired since"
            raise StuckError(f"step {self.step}: {ends}; {why}; groups: {queue(self.exchange)}")

    def _check_full(self) -> None:
        """Raises `StuckError` if the blobs fill `exchange.max_bytes` and there are too few pairs for a step."""
        counts, need = self.exchange.counts(), self.config.learner.batch_size
        idle = counts[State.READY] < need and not any(counts[state] for state in BUSY)
        if not (idle and self.exchange.refused_for is RefusalReason.DISK_FULL):
            self._full_since = None
            return
        self._full_since = self._full_since or time.monotonic()
        if time.monotonic() - self._full_since > FULL_SECONDS:
            have = f"the learner needs {need} pairs and has {counts[State.READY]}"
            raise StuckError(f"step {self.step}: {have}, the samplers wait for admission ({self.exchange.refusal})")

    def _pause(self) -> None:
        if self._stop.wait(POLL_SECONDS):
            raise Stopped
