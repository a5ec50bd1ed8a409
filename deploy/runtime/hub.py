"""The middle of a cluster run, one process: run folder, exchange, weights and journal, and the run's course.

```
   workers ──ZMQ──> exchange, journal, weights (a thread each)          driver ──> news, release, stop
                        │                                                            │
                        ▼                                                            ▼
                    run folder  <──────────────── Watch: the course, which only waits
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
from typing import Any

from actors.prompts.source import PromptSource
from common.config import RunConfig, to_toml
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.remote import exchange_service
from common.exchange.sampling import RefusalReason
from common.messages import LogEntry, Prompt, TrainingFinished, WeightVersion
from common.roles import HUB
from common.rpc.curve import KEYS, WORKER, ServerKeys, is_loopback, make_or_read
from common.rpc.server import Service, serving
from common.weights.sync import VersionPublisher, weight_service
from deploy.guardrails.monitor import GuardrailMonitor, Probes, open_probes
from deploy.logs.files import DRIVER, LogFiles
from deploy.logs.process import errors_logged, logging_to
from deploy.logs.redaction import Redactor, secrets_of
from deploy.run_dir import layout
from deploy.run_dir.journal import RunJournal
from deploy.run_dir.jsonl import EVENTS, JsonLines
from deploy.run_dir.progress import Status, ThroughputTracker
from deploy.runtime.evaluation import HeldOutEvaluation, Stuck
from deploy.runtime.external_workers import ExternalWorkers, reception_service
from deploy.runtime.factories import open_inputs
from deploy.runtime.messages import MEETING, Addresses, HubReady, HubStatus, Outcome
from deploy.runtime.remote_journal import journal_service
from deploy.runtime.run_loop import RunLoop, Stopped, queue
from deploy.runtime.run_metrics import MeteredExchange, RunMeter
from learner import checkpoint

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # between two looks at how things stand
PATIENCE = 50  # steps' worth of ties, failures and expiries without a step after which a run is stuck
FULL_SECONDS = 30.0  # for which nobody can work before a disk's bound counts as too small
REFUSED_SECONDS = 60.0  # without a new group after which refused admission is logged
SAMPLED = (State.SAMPLED, State.SCORING, State.PAIRED, State.TRAINING, State.TRAINED, State.TIED, State.EXPIRED)
BUSY = (State.SAMPLING, State.SAMPLED, State.SCORING, State.TRAINING)


class Hub:
    """Opens a run folder, serves it, and brings the run to its end with the workers that come.

    `open`, then `run` in one thread; the other methods may be called from others. `close` ends the services.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._stack, self._stop, self._bulletin = ExitStack(), Event(), Bulletin()
        self._services: dict[str, Service] = {}

    def open(self, host: str = "127.0.0.1") -> HubReady | Outcome:
        """Claim the folder and serve it at `host`. The outcome of a finished run; `ConfigError` for bad input."""
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
            self._bulletin.say(line)
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
        announcer = VersionPublisher(self._at(host, 1), keys)
        stack.callback(announcer.close)
        self._meter = meter = RunMeter(config, folder)
        self._exchange = AnnouncingExchange(folder, config, prompts, meter, announcer)
        stack.callback(self._exchange.close)
        self._exchange.rollback(saved)  # what came after the checkpoint is taken back before anybody samples
        if saved:
            log.info("resumed from the checkpoint of step %d; later uses of pairs are rolled back", saved)
        journal = self._journal(stack, folder)
        events = stack.enter_context(JsonLines(folder / EVENTS))
        self._course = self._make_course(folder, events, journal, prompts, probes, saved)
        addresses = self._serve(stack, host, folder, journal, announcer.address, keys)
        self._receive_guests(stack, host, addresses, keys)
        meter.watch(self._course, self._refused)
        meter.export(stack, host)
        return HubReady(addresses, self._course.trained() is None)

    def _keys(self, host: str, folder: Path) -> ServerKeys | None:
        """None where only this machine can connect."""
        if self.config.cluster.keys != "always" and is_loopback(host):
            return None
        keys = make_or_read(folder / KEYS)
        for secret in (keys.secret, keys.worker.secret):
            self._redact.hide(secret)
        return keys

    def _journal(self, stack: ExitStack, folder: Path) -> RunJournal:
        waiting, kept = (lambda: queue(self._exchange)), self.config.timeline_bytes
        return stack.enter_context(RunJournal(folder, waiting, self._meter, timeline_bytes=kept, logs=self._logs.write))

    def _make_course(
        self,
        folder: Path,
        events: JsonLines,
        journal: RunJournal,
        prompts: PromptSource,
        probes: Probes | None,
        saved: int,
    ) -> ClusterRunLoop:
        config = self.config
        guard = GuardrailMonitor(
            config=config,
            folder=folder,
            exchange=self._exchange,
            probes=probes,
            events=events,
            say=self._bulletin.say,
            told=self._meter.reading,
        )
        return ClusterRunLoop(
            config=config,
            folder=folder,
            exchange=self._exchange,
            events=events,
            guard=guard,
            journal=journal,
            heldout=prompts.heldout(config.evaluation.prompts, config.seed),
            saved=saved,
            progress=self._bulletin,
            stop=self._stop,
        )

    def _serve(
        self, stack: ExitStack, host: str, folder: Path, journal: RunJournal, notes: str, keys: ServerKeys | None
    ) -> Addresses:
        """Starts the services for workers; `notes` is where versions are announced."""
        services = {
            "exchange": exchange_service(self._exchange, self._at(host, 2), keys=keys),
            "journal": journal_service(journal, self._at(host, 3), keys),
            "weights": weight_service(self._course.store, self._at(host, 4), keys),
        }
        at = {name: stack.enter_context(serving(service)).address for name, service in services.items()}
        self._services |= services
        key = keys.worker if keys else None
        return Addresses(
            exchange=at["exchange"], journal=at["journal"], weights=at["weights"], notes=notes, folder=folder, key=key
        )

    def _receive_guests(self, stack: ExitStack, host: str, addresses: Addresses, keys: ServerKeys | None) -> None:
        self._guests = ExternalWorkers(self.config, addresses, self._gone)
        reception = stack.enter_context(serving(reception_service(self._guests, self._at(host, 0), keys)))
        self._services["reception"] = reception
        stack.callback(self._guests.dismiss)  # while all services still answer
        shown = f" --key {addresses.folder / KEYS / WORKER}" if keys else ""
        invitation = f"others may join: douga worker sampler --connect {reception.address}{shown}"
        log.info("%s", invitation)
        self._bulletin.say(invitation)

    def _refused(self) -> dict[str, int]:
        return {name: service.counts["error"] for name, service in self._services.items()}

    def _at(self, host: str, number: int) -> str:
        """The address of the hub's service of that number."""
        port = self.config.cluster.port
        return f"tcp://{host}:{port + number if port else '*'}"

    def run(self) -> Outcome:
        """The course, from where the folder stands to its end or to `stop`."""
        with errors_logged(HUB):
            return self._course.run()

    def news(self) -> HubStatus:
        """How things stand, and what was said since the last call."""
        self._meter.targets.hide(self._guests.absent())
        status, lines = self._bulletin.take()
        return HubStatus(status=status, lines=lines, samplers=self._guests.count("sampler"))

    def release(self, worker: str) -> None:
        """`worker` is dead: others may take over its work."""
        log.warning("%s crashed: its leases are free", worker)
        self._meter.died(worker)
        self._gone(worker)

    def _gone(self, worker: str) -> None:
        self._exchange.release(worker)
        self._meter.targets.remove([worker])

    def log_driver(self, entries: Sequence[LogEntry]) -> None:
        """Write down what the driver logs; it need not see the run folder."""
        self._logs.write(DRIVER, entries)

    def found_ray(self, exporters: list[str]) -> None:
        """Where Ray's own metrics are."""
        self._meter.targets.ray(exporters)

    def stop(self) -> None:
        """`run` returns soon. Stop the workers before: they still need the services."""
        self._stop.set()

    def close(self) -> None:
        """End the services and let go of the folder."""
        self._stack.close()


def _sweep(folder: Path) -> None:
    """Remove the files that earlier groups of ranks met at."""
    for place in folder.glob(f"{MEETING}*"):
        place.unlink(missing_ok=True)


class AnnouncingExchange(MeteredExchange):
    """The exchange of a run, which lets samplers know of every version at once."""

    def __init__(
        self, folder: Path, config: RunConfig, source: Any, meter: RunMeter, announcer: VersionPublisher
    ) -> None:
        super().__init__(folder, config, source, meter)
        self._announcer = announcer

    def announce(self, version: WeightVersion) -> None:
        """See `Exchange.announce`."""
        super().announce(version)
        self._announcer.announce(version.version)


class Bulletin:
    """A `Progress` that keeps the newest status until somebody reads it."""

    def __init__(self) -> None:
        self._lock, self._status, self._lines = Lock(), None, []

    def update(self, status: Status) -> None:
        """See `Progress`."""
        with self._lock:
            self._status = status

    def say(self, line: str) -> None:
        """See `Progress`."""
        with self._lock:
            self._lines.append(line)

    def take(self) -> tuple[Status | None, list[str]]:
        """What is new: the latest status, and all lines."""
        with self._lock:
            taken = self._status, self._lines
            self._status, self._lines = None, []
        return taken


class RefusalWatch:
    """Logs that no group was admitted for `REFUSED_SECONDS`, and again each time that has doubled."""

    def __init__(self) -> None:
        self._admitted, self._since, self._next = -1, 0.0, REFUSED_SECONDS

    def look(self, refusal: str, admitted: int, now: float) -> None:
        """At second `now`: groups admitted so far, and why the last request was refused (empty: it was not)."""
        if not refusal or admitted != self._admitted:
            self._admitted, self._since, self._next = admitted, now, REFUSED_SECONDS
        elif now - self._since >= self._next:
            log.warning("no group was admitted for %.0f s: %s", now - self._since, refusal)
            self._next *= 2


class ClusterRunLoop(RunLoop):
    """A course whose work is done elsewhere: it queues the held-out prompts, looks on, and says how things stand."""

    def __init__(
        self,
        *,
        config: RunConfig,
        folder: Path,
        exchange: LocalExchange,
        events: JsonLines,
        guard: GuardrailMonitor,
        journal: RunJournal,
        heldout: list[Prompt],
        saved: int,
        progress: Bulletin,
        stop: Event,
    ) -> None:
        evaluation = HeldOutEvaluation(
            config=config, prompts=heldout, exchange=exchange, progress=progress, work=self._wait_for_workers
        )
        super().__init__(
            config=config, folder=folder, exchange=exchange, events=events, guard=guard, evaluation=evaluation
        )
        self.exchange: LocalExchange = exchange
        self.journal, self.progress = journal, progress
        self._saved, self._stop = saved, stop  # the step of the checkpoint that this start goes on from
        self._full_since: float | None = None
        self._refusals = RefusalWatch()

    @property
    def step(self) -> int:
        """See `RunLoop.step`."""
        return self.journal.last.step if self.journal.last else self._saved

    def _wait_for_workers(self, version: int, most: int, show: Callable[[], None]) -> bool:
        """See `evaluation.Work`: others do it."""
        self._pause()
        return True

    def train(self) -> TrainingFinished:
        """See `RunLoop.train`."""
        self.events.write(event="resumed" if self._saved else "started", step=self._saved, config=to_toml(self.config))
        self.guard.look()  # the base model's probes are sampled with its held-out prompts
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
            self._refusals.look(self.exchange.refusal, sum(self.exchange.counts().values()), time.monotonic())
            self._pause()
        return end

    def _end(self) -> TrainingFinished | None:
        """What training ended with, once no reading of the guardrails is due or under way."""
        self.guard.look()
        return None if self.guard.busy else self.journal.end

    def _sampled(self) -> int:
        counts = self.exchange.counts()
        return sum(counts[state] for state in SAMPLED)

    def _ended(self) -> int:
        counts = self.exchange.counts()
        return counts[State.TIED] + counts[State.FAILED] + counts[State.EXPIRED]

    def _check_stuck(self, ended: int) -> None:
        """`Stuck` after so many ties and failures since the last step that no step is to be expected."""
        if ended > PATIENCE * self.config.learner.pairs_per_step:
            why = next(iter(self.exchange.failures().values()), "none failed")
            ends = f"{ended} groups tied, failed or expired since"
            raise Stuck(f"step {self.step}: {ends}; {why}; groups: {queue(self.exchange)}")

    def _check_full(self) -> None:
        """`Stuck` when blobs fill the disk's bound, and no step will free them: there are no pairs for one."""
        counts, need = self.exchange.counts(), self.config.learner.pairs_per_step
        idle = counts[State.PAIRED] < need and not any(counts[state] for state in BUSY)
        if not (idle and self.exchange.refused_for is RefusalReason.DISK_FULL):
            self._full_since = None
            return
        self._full_since = self._full_since or time.monotonic()
        if time.monotonic() - self._full_since > FULL_SECONDS:
            have = f"the learner waits for {need} pairs and has {counts[State.PAIRED]}"
            raise Stuck(f"step {self.step}: {have}, the samplers wait for leave ({self.exchange.refusal})")

    def _pause(self) -> None:
        if self._stop.wait(POLL_SECONDS):
            raise Stopped
