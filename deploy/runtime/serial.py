"""``mode = "serial"``: all roles in one process, in a fixed order. The whole algorithm as one readable loop.

```
evaluate(base)                      held-out prompts, version 0
until `steps` optimizer steps:
    sampler samples while admission allows it     (waits for: a push)
    rewarder scores while there are clips         (waits for: the sampler)
    learner takes one optimizer step              (waits for: batch_size pairs)
    sampler loads what the learner pushed
    guardrails take a reading, if one is due      (waits for: its probes, sampled and scored in this process)
evaluate(aligned)                   same prompts, same seeds
```

The result is a function of configuration, seed and number of CPU threads, which is kept in the run folder
(`deploy/runtime/workers/threads.py`). All state is in the run folder: after a kill at any point the same
command resumes the run, and the final weights are bit-identical. `stop` is called between any two units of work; when
it returns True, the learner saves a checkpoint and the run returns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from actors.loop import SamplingLoop
from actors.prompts.source import PromptSource
from common.config import RunConfig, to_toml
from common.exchange.api import State
from common.messages import SerializedTensor, StepStats, TrainingFinished
from common.roles import SAMPLER, SERIAL
from common.weights.store import WeightStore
from deploy.guardrails.monitor import GuardrailMonitor, PausedError, Probes, open_probes
from deploy.logs.files import LogFiles
from deploy.logs.process import logging_to
from deploy.logs.redaction import Redactor, secrets_of
from deploy.observability.exporter import GaugeSample
from deploy.planning.free_space import check_space
from deploy.run_dir import layout
from deploy.run_dir.endings import ending_recorded, record_kill
from deploy.run_dir.journal import RunJournal, timed
from deploy.run_dir.jsonl import EVENTS, JsonLines
from deploy.run_dir.progress import NullProgress, Progress, ThroughputTracker
from deploy.runtime.evaluation import StuckError
from deploy.runtime.factories import check_toon_heads, learner_of, open_inputs, open_scorers
from deploy.runtime.inputs.offline_pairs import on_stderr
from deploy.runtime.messages import Outcome
from deploy.runtime.oom import needed_by
from deploy.runtime.run_loop import RunLoop, Stopped, queue
from deploy.runtime.run_metrics import MeteredExchange, RunMetrics
from deploy.runtime.workers.local import LocalWorkers
from deploy.runtime.workers.threads import threads_kept
from learner.loop import LearningLoop
from rewarders.interface import Judge, Reward
from rewarders.loop import ScoringLoop

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"  # address of the metrics server
MAX_ROUNDS_WITHOUT_STEP = 50  # rounds of sampling and scoring without a step before the run counts as stuck


@dataclass(frozen=True)
class Roles:
    """Everything that needs no run folder. Opened first, so that bad input leaves no folder behind."""

    prompts: PromptSource
    sampler: SamplingLoop
    rewarder: ScoringLoop
    probes: Probes | None


def open_roles(
    config: RunConfig, rewards: Sequence[Reward | Judge] | None = None, notify: Callable[[str], None] = on_stderr
) -> Roles:
    """Opens prompts, model and rewards. Excluded clips are reported through `notify`.

    Raises `ConfigError` for missing or invalid input.
    """
    if rewards is None:
        check_toon_heads(config)
    prompts = open_inputs(config, notify)
    probes = open_probes(config, prompts)
    sampler, rewarder = open_scorers(config, rewards)
    return Roles(prompts, sampler, rewarder, probes)


def run(
    config: RunConfig,
    rewards: Sequence[Reward | Judge] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Outcome:
    """Starts or resumes a run; returns when it has finished or `stop` returns True.

    `rewards` replaces the heads of ``config.reward.path``. A finished run returns its result at once. Raises
    `ConfigError` for bad input, `StorageError` if the disk fails, `StuckError` if no role can make progress.
    """
    done = layout.finished_result(config)
    if done is not None:
        return Outcome(done["step"], done)
    left_out: list[str] = []
    shown = progress or NullProgress()
    with ExitStack() as stack:
        config = stack.enter_context(threads_kept(config, shown.message))
        roles = open_roles(config, rewards, left_out.append)
        check_space(config, left_out.append)
        folder = stack.enter_context(layout.claim(config, left_out.append))
        stack.enter_context(ending_recorded(folder))
        _open_log(stack, config, folder)
        record_kill(folder)
        for line in left_out:
            log.warning("%s", line)
        loop = _open_run_loop(stack, config, folder, roles, stop, shown)
        loop.run_metrics.watch(loop)
        loop.run_metrics.export(stack, LOOPBACK)
        return loop.run()


def _open_log(stack: ExitStack, config: RunConfig, folder: Path) -> None:
    file = LogFiles(folder, config, Redactor(secrets_of(config, os.environ))).of(SERIAL)
    stack.callback(file.close)
    stack.enter_context(logging_to(file, config, SERIAL))


def _open_run_loop(
    stack: ExitStack, config: RunConfig, folder: Path, roles: Roles, stop: Callable[[], bool], progress: Progress
) -> Serial:
    """Opens the files of the run folder, which are closed with `stack`."""
    run_metrics = RunMetrics(config, folder, SERIAL)
    exchange = MeteredExchange(folder, config, roles.prompts, run_metrics)
    stack.callback(exchange.close)
    journal = stack.enter_context(
        RunJournal(folder, lambda: queue(exchange), run_metrics, timeline_bytes=config.timeline_bytes)
    )
    events = stack.enter_context(JsonLines(folder / EVENTS))
    guardrails = GuardrailMonitor(
        config=config,
        folder=folder,
        exchange=exchange,
        probes=roles.probes,
        events=events,
        notify=progress.message,
        on_reading=run_metrics.reading,
    )
    loop = Serial(config=config, roles=roles, folder=folder, exchange=exchange, events=events, guardrails=guardrails,
                  journal=journal, stop=stop, progress=progress)  # fmt: skip
    if not config.simulate:  # simulated scores have no judges
        exchange.on_scores = loop.pair_watch.seen
    return loop


class Serial(RunLoop):
    """The run loop with all roles in this process."""

    def __init__(
        self,
        *,
        config: RunConfig,
        roles: Roles,
        folder: Path,
        exchange: MeteredExchange,
        events: JsonLines,
        guardrails: GuardrailMonitor,
        journal: RunJournal,
        stop: Callable[[], bool],
        progress: Progress,
    ) -> None:
        self.workers = LocalWorkers(
            config=config,
            sampler=roles.sampler,
            rewarder=roles.rewarder,
            exchange=exchange,
            store=WeightStore(folder / "weights"),
            journal=journal,
            progress=progress,
            between=self._check_stop,
            scored=self.keep_candidates,
        )
        super().__init__(
            config=config,
            folder=folder,
            exchange=exchange,
            events=events,
            guardrails=guardrails,
            evaluation=self.workers.evaluation(roles.prompts),
        )
        self.roles, self.journal, self.stop, self.progress = roles, journal, stop, progress
        self._pace = ThroughputTracker(config)
        self._step = 0
        self.run_metrics = exchange.run_metrics
        self.run_metrics.process_metrics.read(
            lambda: [GaugeSample("douga_policy_version", roles.sampler.version, {"role": SAMPLER})]
        )

    @property
    def step(self) -> int:
        """See `RunLoop.step`."""
        return self._step

    def keep_empty_prompt(self) -> None:
        """See `RunLoop.keep_empty_prompt`."""
        self.exchange.keep_empty_prompt(self.roles.sampler.empty_prompt_embeds())

    def train(self) -> TrainingFinished:
        """See `RunLoop.train`."""
        with needed_by(self.roles.sampler.worker, self.config):
            empty_embeds = self.roles.sampler.empty_prompt_embeds()
        with needed_by("learner-0", self.config):  # out-of-memory errors of the other roles inside name those roles
            return self._train_with(empty_embeds)

    def _train_with(self, empty_embeds: SerializedTensor) -> TrainingFinished:
        learner = learner_of(self.config)(self.folder, "learner-0")
        learner.empty_embeds, learner.meters = empty_embeds, self.run_metrics.process_metrics
        try:
            resumed = learner.resume(self.workers.exchange)
            self._step = learner.step
            self.events.write(event="resumed" if resumed else "started", step=self.step, config=to_toml(self.config))
            layout.check_steps(self.config, learner.step)
            return self._train_to_end(learner)
        finally:
            learner.close()

    def _train_to_end(self, learner: LearningLoop) -> TrainingFinished:
        try:
            self._read_guardrails()
            self.evaluate_base()
            self._load_newest(learner)
            self._read_guardrails()
            self._load_newest(learner)
            self._pace.start()
            self.pair_watch.advance(self.exchange.counts(), self.exchange.failures)
            while learner.step < self.config.steps:
                self._iterate(learner)
        except (Stopped, PausedError):
            learner.pause(self.workers.exchange)
            raise
        return learner.finish(self.workers.exchange)

    def _read_guardrails(self) -> None:
        """Takes a guardrail reading, if one is due."""
        self.guardrails.advance()
        if self.guardrails.busy:
            self.workers.probe()
            self.guardrails.advance()

    def _iterate(self, learner: LearningLoop) -> None:
        """Samples what admission allows, scores it, takes one optimizer step."""
        # Pairs may expire when the learner requests them. That frees admission, so sample again and retry once.
        stats = self._learn(learner) or self._learn(learner)
        if stats is None:
            raise StuckError(self._stuck_message(learner))
        self._step = learner.step
        self.journal.step(stats)
        if stats.pushed:
            self._load_newest(learner)
            self._read_guardrails()
            self._load_newest(learner)
        self._pace.add(stats)
        self._show()

    def _learn(self, learner: LearningLoop) -> StepStats | None:
        self._drain(learner)
        self._check_stop()
        return timed(self.journal, learner.worker, "learning", lambda: learner.work(self.workers.exchange))

    def _drain(self, learner: LearningLoop) -> None:
        """Samples and scores until admission refuses.

        A tie frees its place at once. It must be refilled before the step, because a resumed run refills it before the
        step too; refilled after the step, the group would have other weights.
        """
        for _ in range(MAX_ROUNDS_WITHOUT_STEP):
            if not self._sample() + self.workers.score():
                return
            self.pair_watch.advance(self.exchange.counts(), self.exchange.failures)
            self._check_stop()
        raise StuckError(self._stuck_message(learner))

    def _sample(self) -> int:
        groups, most = 0, self.config.groups_per_push * (self.config.exchange.max_lag + 1)
        while groups < most and self.workers.sample():
            groups += 1
            self._pace.groups += 1
            self._show()
        return groups

    def _show(self) -> None:
        tied = self.exchange.counts()[State.TIED]
        self.progress.update(self._pace.status(self.step, self.roles.sampler.version, tied))

    def _check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def _load_newest(self, learner: LearningLoop) -> None:
        if self.roles.sampler.version != learner.version:
            self.workers.load(learner.version)

    def _stuck_message(self, learner: LearningLoop) -> str:
        counts = {state.value: count for state, count in self.exchange.counts().items() if count}
        need, refusal = self.config.learner.batch_size, self.exchange.refusal or "not requested"
        failed = "".join(
            f"; group {ordinal} failed: {why}" for ordinal, why in list(self.exchange.failures().items())[:1]
        )
        return (
            f"no progress at step {learner.step}: the learner needs {need} pairs and has "
            f"{counts.get('ready', 0)}, the rewarder waits for clips, the sampler waits for admission ({refusal}); "
            f"groups: {counts}{failed}"
        )
