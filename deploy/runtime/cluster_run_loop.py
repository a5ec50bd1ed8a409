"""The run loop of a cluster run: enqueues held-out prompts, waits for the workers, reports progress.

Raises `StuckError` if the workers cannot take another step: too many groups tie, fail or expire, or the blobs fill
`exchange.max_bytes`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock

from actors.prompts.source import PromptSource
from common.config import RunConfig, to_toml
from common.exchange.admission import RefusalReason
from common.exchange.api import LOST, State
from common.exchange.local import LocalExchange
from common.messages import TrainingFinished
from deploy.guardrails.monitor import GuardrailMonitor
from deploy.run_dir.journal import RunJournal
from deploy.run_dir.jsonl import JsonLines
from deploy.run_dir.progress import Status, ThroughputTracker
from deploy.runtime.evaluation import HeldOutEvaluation, StuckError
from deploy.runtime.run_loop import RunLoop, Stopped, queue

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # between two polls of the exchange
MAX_LOST_BATCHES = 50  # batches of groups that tie, fail or expire without a step before the run counts as stuck
FULL_SECONDS = 30.0  # without any work before exchange.max_bytes counts as too small
REFUSED_SECONDS = 60.0  # without a new group before refused admission is logged
SAMPLED = (State.SAMPLED, State.SCORING, State.READY, State.TRAINING, State.TRAINED, State.TIED, State.EXPIRED)
BUSY = (State.SAMPLING, State.SAMPLED, State.SCORING, State.TRAINING)


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
        prompts: PromptSource,
        saved: int,
        progress: BufferedProgress,
        stop: Event,
    ) -> None:
        evaluation = HeldOutEvaluation(
            config=config, source=prompts, exchange=exchange, progress=progress, work=self._wait_for_workers
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

    def keep_empty_prompt(self) -> None:
        """See `RunLoop.keep_empty_prompt`. The samplers do it."""

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
            counts = self.exchange.counts()
            self.progress.update(pace.status(self.step, self.exchange.current_version(), counts[State.TIED]))
            self.pair_watch.advance(counts, self.exchange.failures)
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
        return sum(counts[state] for state in LOST)

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
        self.keep_candidates()
        if self._stop.wait(POLL_SECONDS):
            raise Stopped
