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

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actors.prompts import PromptSource, open_prompts
from actors.sampler import Sampler
from common.config import ConfigError, RunConfig, to_toml
from common.exchange.client import ScoredCandidate, State
from common.exchange.local import LocalExchange
from common.metrics import EVENTS, METRICS, JsonLines, Timers
from common.models import ModelFolder, open_model
from common.weights import WeightStore
from deploy import evaluate, run_folder
from deploy.heldout import HeldOut, Stuck
from deploy.progress import Progress, Silent, Status
from learner.train import Learner, StepStats
from rewarders.anime import load_heads
from rewarders.base import Reward
from rewarders.rewarder import Rewarder

PATIENCE = 50  # rounds of sampling without a step after which a run of ties and failures is an error
RECENT = 10  # steps over which the progress line takes means
BASE = 0  # the version of the base model
QUEUE = (State.PENDING, State.SAMPLING, State.SAMPLED, State.SCORING, State.PAIRED, State.TRAINING)


class Stopped(Exception):
    """`stop` said yes between two units of work."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `run` ended: `result` is what result.json holds, None after a stop."""

    step: int
    result: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the run is at its end and compared."""
        return self.result is not None


@dataclass(frozen=True)
class Roles:
    """Everything that needs no run folder. Made first, so that bad input is found before a folder is made."""

    model: ModelFolder
    prompts: PromptSource
    sampler: Sampler
    rewarder: Rewarder


def gather(config: RunConfig, rewards: Sequence[Reward] | None = None) -> Roles:
    """Open model, prompts and reward heads. `ConfigError` for what is missing or broken."""
    model = open_model(config.model.path)
    prompts = open_prompts(config.prompts, config.seed, model.image_conditioned)
    prompts.heldout(config.evaluation.prompts, config.seed)
    heads: Sequence[Any] = load_heads(config.reward.path, config.model.device) if rewards is None else rewards
    scored = {head.dimension for head in heads}
    for name, weight in config.reward.weights.model_dump().items():
        if weight > 0 and name not in scored:
            raise ConfigError(f"reward.weights.{name} = {weight}: no head scores it; scored are {sorted(scored)}")
    return Roles(model, prompts, Sampler(model, config), Rewarder(heads, config.reward))


def finished_result(config: RunConfig) -> dict[str, Any] | None:
    """The result of a run that is already at its end, else None. `ConfigError` for another run's folder."""
    run_folder.check_belongs(config.folder, config)
    result = run_folder.read_result(config.folder)
    if result is None or "verdict" not in result:
        return None
    asked = (config.steps, config.evaluation.prompts)
    return result if (result["step"], result["prompts"]) == asked else None


def run(
    config: RunConfig,
    rewards: Sequence[Reward] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Outcome:
    """Start or resume a run and bring it to its end, or to the point where `stop` says yes.

    `rewards` replaces the heads of ``config.reward.path``. A finished run returns its result at once.
    """
    done = finished_result(config)
    if done is not None:
        return Outcome(done["step"], done)
    started = time.perf_counter()
    roles = gather(config, rewards)
    with run_folder.claim(config) as folder:
        exchange = LocalExchange(folder, config, roles.prompts)
        with JsonLines(folder / METRICS) as metrics, JsonLines(folder / EVENTS) as events:
            try:
                return Serial(config, roles, folder, exchange, metrics, events, stop, progress, started).run()
            finally:
                exchange.close()


class Serial:
    """One process's share of a run: from where the folder stands to the end, or to a stop."""

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        folder: Path,
        exchange: LocalExchange,
        metrics: JsonLines,
        events: JsonLines,
        stop: Callable[[], bool],
        progress: Progress | None,
        started: float,
    ) -> None:
        self.config, self.roles, self.folder, self.exchange = config, roles, folder, exchange
        self.metrics, self.events, self.stop = metrics, events, stop
        self.progress = progress or Silent()
        self.timers = Timers()
        self.store = WeightStore(folder / "weights")
        self.heldout = HeldOut(
            *(config, roles.prompts, roles.sampler, roles.rewarder, exchange, self.store, self.timers, self.progress),
            between=self._check_stop,
        )
        self._since = started  # when the time not yet recorded began
        self._recent: deque[StepStats] = deque(maxlen=RECENT)
        self._pace: deque[float] = deque(maxlen=RECENT)
        self._groups, self._sampling_began = 0, time.perf_counter()
        self._last_step = 0

    def run(self) -> Outcome:
        """Train unless that is done, then compare."""
        trained = self._trained()
        if trained is None:
            try:
                trained = self._train()
            except Stopped:
                return Outcome(self._last_step, None)
        try:
            return Outcome(trained["step"], self._compare(trained))
        except Stopped:
            self._record("interrupted", step=trained["step"])
            return Outcome(trained["step"], None)

    def _trained(self) -> dict[str, Any] | None:
        """What result.json says of a training that reached its end, if that is the end asked for."""
        result = run_folder.read_result(self.folder)
        if result is None or result["step"] != self.config.steps:
            return None
        return result if result["version"] in self.store.versions() else None

    # Training.

    def _train(self) -> dict[str, Any]:
        empty = self.roles.sampler.empty_prompt_embeds()
        learner = Learner(self.roles.model, self.config, self.folder, empty_embeds=empty)
        try:
            resumed = learner.resume(self.exchange)
            self._record("resumed" if resumed else "started", step=learner.step, config=to_toml(self.config))
            self._last_step = learner.step
            if learner.step > self.config.steps:
                raise ConfigError(f"{self.folder}: {learner.step} steps are done; steps = {self.config.steps} is less")
            return self._learn_on(learner)
        finally:
            learner.close()

    def _learn_on(self, learner: Learner) -> dict[str, Any]:
        try:
            self._evaluate(BASE, "evaluating base")
            self._load_newest(learner)
            self._sampling_began = time.perf_counter()
            while learner.step < self.config.steps:
                self._turn(learner)
        except Stopped:
            # Between two pushes the samplers hold older weights than the learner: only pushed steps can be resumed.
            if learner.step and learner.step % self.config.learner.steps_per_push == 0:
                learner.save(self.exchange)
            self._record("interrupted", step=learner.step)
            raise
        return self._finish_training(learner)

    def _finish_training(self, learner: Learner) -> dict[str, Any]:
        """The last weights become a version even if no push is due, and a checkpoint; then the fact is kept."""
        if learner.step % self.config.learner.steps_per_push:
            learner.publish(self.exchange)
        if learner.step % self.config.learner.checkpoint_every:
            learner.save(self.exchange)
        trained = {"step": learner.step, "version": learner.version, "weights_digest": learner.policy_digest()}
        run_folder.write_result(self.folder, trained)
        return trained

    def _turn(self, learner: Learner) -> None:
        """Sample what admission allows, score it, take one step."""
        self._drain(learner)
        self._check_stop()
        with self.timers.measure("learning"):
            stats = learner.work(self.exchange)
        if stats is None:
            raise Stuck(self._who_waits(learner))
        self._last_step = learner.step
        if stats.pushed:
            self._load_newest(learner)
        self._report_step(stats)

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
        while groups < most and self.heldout.unit("sampling", self.roles.sampler.work):
            groups += 1
            self._groups += 1
            self._show()
        return groups

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

    # Evaluation.

    def _compare(self, trained: dict[str, Any]) -> dict[str, Any]:
        base = self._evaluate(BASE, "evaluating base")
        aligned = self._evaluate(trained["version"], "evaluating aligned")
        records = evaluate.by_prompt(base, aligned, self.config)
        self._keep_clips(records, base, aligned)
        result = trained | evaluate.conclude(records)
        self._record("finished", "evaluation", step=trained["step"], verdict=result["verdict"]["words"])
        run_folder.write_result(self.folder, result)
        return result

    def _evaluate(self, version: int, phase: str) -> list[ScoredCandidate]:
        found, made = self.heldout.evaluate(version, phase)
        if made:
            rewards = [evaluate.mean_reward(one.values, self.config.reward.weights.model_dump()) for one in found]
            self._record("evaluated", "evaluation", version=version, reward=sum(rewards) / len(rewards))
        return found

    def _keep_clips(
        self, records: list[dict[str, Any]], base: list[ScoredCandidate], aligned: list[ScoredCandidate]
    ) -> None:
        """The clips as files, and their names in the records."""
        folder = self.folder / "clips"
        folder.mkdir(exist_ok=True)
        for index, (record, *pair) in enumerate(zip(records, base, aligned, strict=True)):
            for side, one in zip(evaluate.SIDES, pair, strict=True):
                name = f"heldout-{index:04d}-{side}.mp4"
                (folder / name).write_bytes(one.candidate.clip)
                record[side]["clip"] = name

    # What is written and shown.

    def _record(self, event: str, everything: str | None = None, **fields: Any) -> None:
        """An event with the time that no record has yet; `everything` puts all of it under one name."""
        self.events.write(event=event, spent=self._spent(everything), **fields)

    def _spent(self, everything: str | None = None) -> dict[str, float]:
        """Seconds by kind of work since the last call; what was not measured is `other`."""
        now = time.perf_counter()
        whole, self._since = now - self._since, now
        taken = dict(self.timers.take())
        if everything is not None:
            return {everything: round(whole, 3)}
        return taken | {"other": round(whole - sum(taken.values()), 3)}

    def _report_step(self, stats: StepStats) -> None:
        spent = self._spent()
        self._recent.append(stats)
        self._pace.append(sum(spent.values()))
        counts = self.exchange.counts()
        queue = {state.value: counts[state] for state in QUEUE if counts[state]}
        self.metrics.write(**asdict(stats), version=self.roles.sampler.version, queue=queue, spent=spent)
        self._show()

    def _show(self) -> None:
        recent, step = self._recent, self._last_step
        status = Status("training", step, self.config.steps, self.roles.sampler.version)
        status = replace(status, groups_per_second=self._rate(), pairs=step * self.config.learner.pairs_per_step)
        if recent:
            last = recent[-1]
            left = (self.config.steps - step) * sum(self._pace) / len(self._pace)
            reward = 100 * sum(one.reward for one in recent) / len(recent)
            status = replace(status, lag=last.lag, reward=reward, gap=last.gap, inside=last.inside, eta=left)
        self.progress.update(status)

    def _rate(self) -> float:
        return self._groups / max(time.perf_counter() - self._sampling_began, 1e-6)
