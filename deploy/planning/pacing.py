"""A discrete-event simulation of the pipeline: how fast a run goes, and what holds it up.

It applies the exchange's own rules (`common/exchange/rules.py`) and no second copy of them, without processes, a ledger
or clips, so hours of thousands of samplers take seconds.

```
free sampler ──> open group of its weights? ──> newer weights staged? ──> may it open a group? ──> wait
free rewarder ─> sampled clips, oldest first                learner ──> B groups ready, no straggler ──> step, push
```

Left out: crashes, ties, failed scores, evaluations and probes, and contention inside the hub.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Literal

from common.exchange import rules

Seconds = Callable[..., float]  # (mean, *what) -> a random duration with this mean


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A run to simulate. All durations are mean seconds."""

    samplers: int
    rewarders: int
    candidates: int  # N of a group
    batch_size: int  # groups of an optimizer step
    sample: float  # one candidate
    score: float  # one clip
    step: float  # one optimizer step
    steps: int
    steps_per_push: int = 1
    max_lag: int = 1  # pushes
    pipeline_depth: int = 64  # groups that run at once
    micro_batch: int = 1  # candidates of one lease
    score_batch: int = 16  # clips of one batch of a rewarder
    order: str = "fifo"
    load: float = 0.0  # until a sampler has swapped in staged weights
    sync: float = 0.0  # from the push until the weights are staged on the samplers' nodes
    push: float = 0.0  # that the learner stands still to publish

    @property
    def bound(self) -> float:
        """Optimizer steps per second that the slowest stage allows."""
        clips = self.candidates * self.batch_size
        stages = (
            (self.samplers, clips * self.sample),
            (self.rewarders, clips * self.score),
            (1, self.step + self.push / self.steps_per_push),
        )
        return min(workers / seconds for workers, seconds in stages if seconds)

    @property
    def limits(self) -> rules.Bounds:
        """The limits of admission."""
        per_push, total = self.batch_size * self.steps_per_push, self.steps * self.batch_size
        return rules.Bounds(self.pipeline_depth, self.max_lag, self.batch_size, per_push, 1, total)


@dataclass(frozen=True, slots=True)
class Pace:
    """What a simulated run did."""

    seconds: float  # until the last step, without the steps of the warm-up
    steps: int
    busy: dict[str, float]  # role -> mean share of the time, 0 to 1
    waits: dict[str, float]  # why samplers were idle -> mean share of the time
    expired: int  # groups
    groups: int  # opened
    lag: float  # mean, pushes
    candidates: int

    @property
    def rate(self) -> float:
        """Optimizer steps per second."""
        return self.steps / self.seconds


def log_normal(tail: float, seed: int = 0) -> Seconds:
    """Durations whose logarithm has the standard deviation `tail`; 0 makes them constant."""
    random = Random(seed)
    return lambda mean, *_: mean * math.exp(random.gauss(0.0, tail) - tail**2 / 2) if tail else mean


def simulate(pipeline: Pipeline, seconds: Seconds, warm_up: int = 0) -> Pace:
    """Run `pipeline` to its last step. The figures are of the steps after the first `warm_up`.

    Raises:
        ValueError: it comes to a standstill, which the rules of the exchange do not allow.
    """
    return Simulator(pipeline, seconds).run(warm_up)


@dataclass(slots=True)
class Group:
    """One prompt group: its state, and the candidates that nobody has sampled or scored yet."""

    ordinal: int
    version: int  # equal to its push count
    free: deque[tuple[int, ...]]  # micro-batches to lease
    unsampled: int
    unscored: int
    state: Literal["sampling", "scoring", "ready"] = "sampling"


@dataclass(slots=True)
class Simulator:
    """The state of a simulated run at `now`."""

    pipeline: Pipeline
    draw: Seconds
    now: float = 0.0
    pushes: int = 0  # also the newest version
    staged: int = 0  # the newest version that samplers can load
    step: int = 0
    opened: int = 0
    expired: int = 0
    lags: int = 0  # summed over trained groups
    running: dict[int, Group] = field(default_factory=dict)  # sampling or scoring, by ordinal
    open: dict[int, deque[Group]] = field(default_factory=dict)  # version -> groups with free candidates, oldest first
    ready: dict[int, Group] = field(default_factory=dict)
    clips: deque[tuple[Group, int]] = field(default_factory=deque)  # to score
    idle: dict[int, deque[int]] = field(default_factory=dict)  # version -> idle samplers that hold it
    reasons: dict[int, str] = field(default_factory=dict)  # version -> what they wait for
    scorers: int = 0  # idle rewarders
    leased: int = 0  # groups of the current step
    publishing: bool = False
    checked: int = 0  # push count at which stale groups were last looked for
    under_way: Counter[int] = field(default_factory=Counter)  # version -> running groups
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    order: count[int] = field(default_factory=count)
    busy: dict[str, float] = field(default_factory=lambda: {"sampler": 0.0, "rewarder": 0.0, "learner": 0.0})
    waited: dict[str, float] = field(default_factory=dict)
    sampled: int = 0

    def run(self, warm_up: int) -> Pace:
        """See `simulate`."""
        self.idle[0] = deque(range(self.pipeline.samplers))
        self.scorers = self.pipeline.rewarders
        began, before = 0.0, self._totals()
        self._give_work()
        while self.step < self.pipeline.steps:
            if not self.events:
                raise ValueError(f"standstill after step {self.step} of {self.pipeline}")
            self._next_event()
            self._give_work()
            if self.step == warm_up > before.steps:
                began, before = self.now, self._totals()
        return self._pace(began, before)

    def _next_event(self) -> None:
        time, _, happen = heapq.heappop(self.events)
        for version, samplers in self.idle.items():
            reason = self.reasons.get(version, "work")
            self.waited[reason] = self.waited.get(reason, 0.0) + (time - self.now) * len(samplers)
        self.now = time
        happen()

    def _at(self, delay: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), happen))

    # Samplers.

    def _give_work(self) -> None:
        """Let every idle worker look for work, until none finds any."""
        self._train()
        for version in sorted(self.idle):
            while self.idle[version] and self._offer(version):
                pass
            if not self.idle[version]:
                del self.idle[version]
        self._score()

    def _offer(self, version: int) -> bool:
        """Give an idle sampler that holds `version` something to do. False if there is nothing."""
        if not self.open.get(version):
            if self.staged > version:
                self._load(self.idle[version].popleft())
                return True
            if self._capacity(version) < 1:
                self.reasons[version] = self._reason()
                return False
            self._open(version)
        self._sample(self.idle[version].popleft(), version)
        return True

    def _load(self, sampler: int) -> None:
        version = self.staged
        duration = self.draw(self.pipeline.load, "load", f"sampler-{sampler}", version)
        self._at(duration, lambda: self._is_idle(sampler, version))

    def _is_idle(self, sampler: int, version: int) -> None:
        self.idle.setdefault(version, deque()).append(sampler)

    def _reason(self) -> str:
        """What an idle sampler waits for."""
        if len(self.running) >= self.pipeline.pipeline_depth:
            return "pipeline_depth"
        return "max_lag" if self._capacity(self.pushes) < 1 else "weights"

    def _capacity(self, version: int) -> int:
        live = len(self.ready) + self.leased
        load = rules.Load(len(self.running), live, live, self.step * self.pipeline.batch_size)
        return rules.capacity(self.pipeline.limits, load, version)

    def _open(self, version: int) -> None:
        size, step = self.pipeline.candidates, self.pipeline.micro_batch
        parts = deque(tuple(range(first, min(first + step, size))) for first in range(0, size, step))
        group = Group(self.opened, version, parts, size, size)
        self.running[group.ordinal] = group
        self.under_way[version] += 1
        self.open.setdefault(version, deque()).append(group)
        self.opened += 1

    def _sample(self, sampler: int, version: int) -> None:
        group = self.open[version][0]
        indices = group.free.popleft()
        if not group.free:
            self.open[version].popleft()
            if not self.open[version]:
                del self.open[version]
        mean = self.pipeline.sample
        duration = sum(self.draw(mean, "sample", group.ordinal, index, version) for index in indices)

        def sampled() -> None:
            self.busy["sampler"] += duration
            self.sampled += len(indices)
            self._is_idle(sampler, version)
            group.unsampled -= len(indices)
            if not group.unsampled:
                group.state = "scoring"
                self._queue(group)

        self._at(duration, sampled)

    # Rewarders.

    def _queue(self, group: Group) -> None:
        """Queue the clips of a sampled group, by ordinal."""
        clips = [(group, index) for index in range(self.pipeline.candidates)]
        if self.clips and self.clips[-1][0].ordinal > group.ordinal:
            self.clips = deque(sorted([*self.clips, *clips], key=lambda clip: (clip[0].ordinal, clip[1])))
        else:
            self.clips.extend(clips)

    def _score(self) -> None:
        while self.scorers and self.clips:
            self.scorers -= 1
            batch = [self.clips.popleft() for _ in range(min(self.pipeline.score_batch, len(self.clips)))]
            names = [f"{group.ordinal}-{index}-v{group.version}" for group, index in batch]
            duration = sum(self.draw(self.pipeline.score, "score", name) for name in names)
            self._at(duration, lambda batch=batch, duration=duration: self._scored(batch, duration))

    def _scored(self, batch: list[tuple[Group, int]], duration: float) -> None:
        self.busy["rewarder"] += duration
        self.scorers += 1
        for group, _ in batch:
            group.unscored -= 1
            if not group.unscored:
                group.state = "ready"
                self.ready[group.ordinal] = self.running.pop(group.ordinal)
                self.under_way -= Counter([group.version])

    # The learner.

    def _train(self) -> None:
        if self.leased or self.publishing or self.step == self.pipeline.steps:
            return
        step, max_lag = self.step + 1, self.pipeline.max_lag
        if self.checked != self.pushes:
            self._expire()
        pushing = step % self.pipeline.steps_per_push == 0
        waits = pushing and self.under_way and not rules.outlives_a_push(self.pushes, min(self.under_way), max_lag)
        if waits or len(self.ready) < self.pipeline.batch_size:
            return
        queue = [rules.QueuedGroup(group.ordinal, 0, 1.0, self._lag(group)) for group in self.ready.values()]
        batch = [self.ready.pop(one) for one in rules.next_batch(queue, self.pipeline.batch_size, self.pipeline.order)]
        self.leased = len(batch)
        self.lags += sum(map(self._lag, batch))
        duration = self.draw(self.pipeline.step, "step", step)
        self._at(duration, lambda: self._stepped(duration, pushing))

    def _expire(self) -> None:
        self.checked = self.pushes
        for group in list(self.ready.values()):
            if rules.is_stale(self._lag(group), self.pipeline.max_lag):
                del self.ready[group.ordinal]
                self.expired += 1

    def _lag(self, group: Group) -> int:
        return rules.lag(self.pushes, group.version)

    def _stepped(self, duration: float, pushing: bool) -> None:
        self.busy["learner"] += duration
        self.step += 1
        self.leased = 0
        if pushing and self.pipeline.push:
            self.publishing = True
            self._at(self.pipeline.push, self._pushed)
        elif pushing:
            self._pushed()

    def _pushed(self) -> None:
        self.publishing = False
        self.pushes += 1
        version = self.pushes
        if self.pipeline.sync:
            self._at(self.pipeline.sync, lambda: setattr(self, "staged", version))
        else:
            self.staged = version

    # Figures.

    def _totals(self) -> Pace:
        waits = dict(self.waited)
        return Pace(self.now, self.step, dict(self.busy), waits, self.expired, self.opened, self.lags, self.sampled)

    def _pace(self, began: float, before: Pace) -> Pace:
        after, one = self._totals(), self.pipeline
        seconds, steps = max(self.now - began, 1e-12), self.step - before.steps
        workers = {"sampler": one.samplers, "rewarder": one.rewarders, "learner": 1}
        busy = {role: (after.busy[role] - before.busy[role]) / seconds / n for role, n in workers.items() if n}
        waits = {why: (all_ - before.waits.get(why, 0.0)) / seconds / one.samplers for why, all_ in after.waits.items()}
        return Pace(
            seconds=seconds,
            steps=steps,
            busy=busy,
            waits=waits,
            expired=after.expired - before.expired,
            groups=after.groups - before.groups,
            lag=(after.lag - before.lag) / max(1, steps * one.batch_size),
            candidates=after.candidates - before.candidates,
        )
