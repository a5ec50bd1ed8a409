"""``mode = "serial"``: all roles in one process, in one fixed order. The whole algorithm as one readable loop.

```
evaluate(base)                      held-out prompts, version 0
until `steps` optimizer steps:
    sampler works while admission lets it        (waits for: a push)
    rewarder works while there are clips          (waits for: the sampler)
    learner takes one optimizer step              (waits for: pairs_per_step pairs)
    sampler loads what the learner pushed
evaluate(aligned)                   same prompts, same seeds
```

The result is a function of configuration and seed. All state lives in the run folder: a run that is killed at any
point goes on when it is started again, and ends in the same weights, bit for bit. Between any two units of work
`stop` is asked; when it says yes the learner saves and the run returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.prompts import PromptSource
from actors.sampler import Sampler
from common.config import RunConfig, to_toml
from common.exchange.client import ScoredCandidate
from common.exchange.local import LocalExchange
from common.journal import RunJournal, measured
from common.messages import Trained
from common.metrics import EVENTS, JsonLines
from common.models import ModelFolder
from deploy import run_folder
from deploy.course import (
    BASE,
    EVALUATING_BASE,
    Course,
    Stopped,
    Stuck,
    check_steps,
    open_inputs,
    queue,
)
from deploy.heldout import HeldOut
from deploy.messages import Outcome
from deploy.progress import Pace, Progress, Silent
from learner.train import Learner
from rewarders.anime import load_heads
from rewarders.base import Reward
from rewarders.rewarder import Rewarder, rewarder_of

PATIENCE = 50  # rounds of sampling without a step after which a run of ties and failures is an error


@dataclass(frozen=True)
class Roles:
    """Everything that needs no run folder. Made first, so that bad input is found before a folder is made."""

    model: ModelFolder
    prompts: PromptSource
    sampler: Sampler
    rewarder: Rewarder


def gather(config: RunConfig, rewards: Sequence[Reward] | None = None) -> Roles:
    """Open model, prompts and reward heads. `ConfigError` for what is missing or broken."""
    model, prompts = open_inputs(config)
    heads = load_heads(config.reward.path, config.model.device) if rewards is None else rewards
    return Roles(model, prompts, Sampler(model, config), rewarder_of(heads, config.reward))


def run(
    config: RunConfig,
    rewards: Sequence[Reward] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Outcome:
    """Start or resume a run and bring it to its end, or to the point where `stop` says yes.

    `rewards` replaces the heads of ``config.reward.path``. A finished run returns its result at once.
    """
    done = run_folder.finished_result(config)
    if done is not None:
        return Outcome(done["step"], done)
    roles = gather(config, rewards)
    with run_folder.claim(config) as folder:
        exchange = LocalExchange(folder, config, roles.prompts)
        with JsonLines(folder / EVENTS) as events, RunJournal(folder, lambda: queue(exchange)) as journal:
            try:
                return Serial(config, roles, folder, exchange, events, journal, stop, progress or Silent()).run()
            finally:
                exchange.close()


class Serial(Course):
    """All roles in this process."""

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        folder: Path,
        exchange: LocalExchange,
        events: JsonLines,
        journal: RunJournal,
        stop: Callable[[], bool],
        progress: Progress,
    ) -> None:
        super().__init__(config, folder, exchange, events)
        self.roles, self.journal, self.stop, self.progress = roles, journal, stop, progress
        self.heldout = HeldOut(
            *(config, roles.prompts, roles.sampler, roles.rewarder, exchange, self.store, journal, progress),
            between=self._check_stop,
        )
        self._pace = Pace(config)
        self._step = 0

    @property
    def step(self) -> int:
        """See `Course.step`."""
        return self._step

    def evaluate(self, version: int, phase: str) -> list[ScoredCandidate]:
        """See `Course.evaluate`."""
        found, made = self.heldout.evaluate(version, phase)
        if made:
            self.evaluated(version, found)
        return found

    def train(self) -> Trained:
        """See `Course.train`."""
        empty = self.roles.sampler.empty_prompt_embeds()
        learner = Learner(self.roles.model, self.config, self.folder, empty_embeds=empty)
        try:
            resumed = learner.resume(self.exchange)
            self._step = learner.step
            self.events.write(event="resumed" if resumed else "started", step=self.step, config=to_toml(self.config))
            check_steps(self.config, learner.step)
            return self._learn_on(learner)
        finally:
            learner.close()

    def _learn_on(self, learner: Learner) -> Trained:
        try:
            self.evaluate(BASE, EVALUATING_BASE)
            self._load_newest(learner)
            self._pace.start()
            while learner.step < self.config.steps:
                self._turn(learner)
        except Stopped:
            learner.pause(self.exchange)
            raise
        return learner.finish(self.exchange)

    def _turn(self, learner: Learner) -> None:
        """Sample what admission allows, score it, take one step."""
        self._drain(learner)
        self._check_stop()
        stats = measured(self.journal, learner.worker, "learning", lambda: learner.work(self.exchange))
        if stats is None:
            raise Stuck(self._who_waits(learner))
        self._step = learner.step
        self.journal.step(stats)
        if stats.pushed:
            self._load_newest(learner)
        self._pace.add(stats)
        self._show()

    def _drain(self, learner: Learner) -> None:
        """Sample and score until admission says wait.

        A tie gives its place back at once; were it filled only after the step, a resumed run would fill it before,
        under other weights.
        """
        for _ in range(PATIENCE):
            if not self._sample() + self.heldout.score():
                return
            self._check_stop()
        raise Stuck(self._who_waits(learner))

    def _sample(self) -> int:
        groups, most = 0, self.config.pairs_per_push * (self.config.exchange.max_lag + 1)
        while groups < most and self.heldout.sample():
            groups += 1
            self._pace.groups += 1
            self._show()
        return groups

    def _show(self) -> None:
        self.progress.update(self._pace.status(self.step, self.roles.sampler.version))

    def _check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def _load_newest(self, learner: Learner) -> None:
        if self.roles.sampler.version != learner.version:
            self.roles.sampler.load(*self.store.load(learner.version))

    def _who_waits(self, learner: Learner) -> str:
        counts = {state.value: count for state, count in self.exchange.counts().items() if count}
        need, refusal = self.config.learner.pairs_per_step, self.exchange.refusal or "none was asked"
        failed = "".join(
            f"; group {ordinal} failed: {why}" for ordinal, why in list(self.exchange.failures().items())[:1]
        )
        return (
            f"no progress at step {learner.step}: the learner waits for {need} pairs and has "
            f"{counts.get('paired', 0)}, the rewarder waits for clips, the sampler waits for leave ({refusal}); "
            f"groups: {counts}{failed}"
        )
