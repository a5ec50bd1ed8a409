"""A run in virtual time: the real exchange with simulated workers, whose pauses advance a clock instead of sleeping.

Workers call the exchange as the processes of `deploy/runtime/workers` do. An idle worker asks again after every event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from common.config import RunConfig
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.simulation import Simulation
from tests.support.exchange.fakes import Clock, candidate, conditioning, score, source, weight_version

Worker = Generator[float | None, None, None]  # yields the seconds of its next pause, or None when it is idle


@dataclass
class VirtualRun:
    """All workers of a run on one clock."""

    folder: Path
    config: RunConfig
    sync: float = 0.0  # seconds from the push until samplers can load the weights
    clock: Clock = field(default_factory=Clock)
    staged: int = 0
    steps: int = 0
    busy: dict[str, float] = field(default_factory=lambda: {"sampler": 0.0, "rewarder": 0.0, "learner": 0.0})

    def run(self) -> float:
        """Run to the last step. Returns its time in seconds."""
        self.exchange = LocalExchange(self.folder, self.config, source, self.clock)
        self.exchange._ledger.run("PRAGMA synchronous = OFF")
        self.draws, self.order = Simulation(self.config), count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        cluster = self.config.cluster
        self.idle: list[Worker] = [self.learner()]
        self.idle += [self.sampler(f"sampler-{number}") for number in range(cluster.sampler.count)]
        self.idle += [self.rewarder(f"rewarder-{number}") for number in range(cluster.rewarder.count)]
        began = self.clock.now
        self.wake()
        while self.steps < self.config.steps:
            self.clock.now, _, happen = heapq.heappop(self.events)
            happen()
            self.wake()
        self.exchange.check()
        return self.clock.now - began

    def at(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self.order), happen))

    def wake(self) -> None:
        """Let the idle workers ask for work, the learner first and samplers by the age of their weights."""
        for worker in sorted(self.idle, key=self.rank):
            self.idle.remove(worker)
            self.advance(worker)

    def rank(self, worker: Worker) -> tuple[int, int]:
        name, local = worker.__name__, worker.gi_frame.f_locals
        return ["learner", "sampler", "rewarder"].index(name), local.get("held", 0)

    def advance(self, worker: Worker) -> None:
        pause = next(worker)
        if pause is None:
            self.idle.append(worker)
        else:
            self.at(pause, lambda: self.advance(worker))

    def pause(self, role: str, mean: float, *what: object) -> float:
        seconds = self.draws.seconds(mean, *what)
        self.busy[role] += seconds
        return seconds

    def sampler(self, name: str) -> Worker:
        held, how = 0, self.config.simulation
        while True:
            wanted = self.exchange.wanted_version(held)
            if (newest := min(wanted, self.staged)) > held:
                yield self.draws.seconds(how.load_seconds, "load", name, newest)
                held = newest
                yield None
                continue
            lease = self.exchange.lease_sampling(name, held)
            if lease is None:
                yield None
                continue
            what = [("sample", lease.prompt.ordinal, index, held) for index in lease.indices]
            yield sum(self.pause("sampler", how.sample_seconds, *one) for one in what)
            self.exchange.submit_conditioning(lease, conditioning(lease.prompt))
            for index in lease.indices:
                assert self.exchange.submit_candidate(lease, candidate(lease, index)).accepted
            yield None

    def rewarder(self, name: str) -> Worker:
        while True:
            tasks = self.exchange.lease_candidates(name, self.config.reward.batch)
            if not tasks:
                yield None
                continue
            mean = self.config.simulation.score_seconds
            yield sum(self.pause("rewarder", mean, "score", task.candidate_id) for task in tasks)
            self.exchange.submit_scores(name, [score(task, 10.0 * task.index) for task in tasks])
            yield None

    def learner(self) -> Worker:
        batch, per_push = self.config.learner.batch_size, self.config.learner.steps_per_push
        while True:
            step = self.steps + 1
            groups = self.exchange.lease_batch("learner-0", step, batch)
            if not groups:
                yield None
                continue
            yield self.pause("learner", self.config.simulation.step_seconds, "step", step)
            self.exchange.commit_step(step, [one.ordinal for one in groups])
            self.steps = step
            if step % per_push == 0:
                self.publish(step, step // per_push)
            yield None

    def publish(self, step: int, version: int) -> None:
        self.exchange.announce(weight_version(version, step, version))
        if self.sync:
            self.at(self.sync, lambda: setattr(self, "staged", version))
        else:
            self.staged = version

    def expired(self) -> int:
        return self.exchange.counts()[State.EXPIRED]
