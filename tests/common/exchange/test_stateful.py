"""Whatever the order of calls, clock jumps, lost processes and rollbacks: the ledger conserves."""

from __future__ import annotations

import shutil
import tempfile
from math import nan
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.config import RunConfig
from common.exchange.client import State
from common.messages import GroupLease, Purpose, ScoreTask
from tests.common.exchange.fakes import (
    Clock,
    candidate,
    conditioning,
    heldout,
    open_exchange,
    score,
    small,
    total,
    weight_version,
)

CONFIGS: list[RunConfig] = [
    small(exchange__lease_seconds=60),
    small(exchange__lease_seconds=60, exchange__order="gap", exchange__max_lag=0, exchange__max_attempts=1),
    small(exchange__lease_seconds=60, exchange__max_times_trained=2, learner__steps_per_push=2),
    small(exchange__lease_seconds=60, exchange__min_gap=0.3, learner__keep_checkpoints=2),
]
SOME = st.integers(0, 999)


class LedgerMachine(RuleBasedStateMachine):
    """Workers that keep old leases, forget them, answer twice, and die; nobody is orderly."""

    @initialize(config=st.sampled_from(CONFIGS))
    def start(self, config: RunConfig) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-"))
        self.config, self.clock = config, Clock()
        self.leases: list[GroupLease] = []
        self.tasks: list[ScoreTask] = []
        self.step = self.checkpoint = self.oldest = 0
        self.version = -1
        self.frontier = 0
        self.open()

    def open(self) -> None:
        self.exchange = open_exchange(self.folder, self.config, self.clock)
        self.exchange._ledger.run("PRAGMA synchronous = OFF")

    def teardown(self) -> None:
        if hasattr(self, "exchange"):
            self.exchange.close()
            shutil.rmtree(self.folder)

    @rule(current=st.booleans())
    def lease_group(self, current: bool) -> None:
        lease = self.exchange.lease_group("sampler", self.exchange.current_version() if current else 0)
        if lease is not None:
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(which=SOME, upto=st.integers(0, 2))
    def submit(self, which: int, upto: int) -> None:
        lease = self.leases[which % len(self.leases)]
        self.exchange.submit_conditioning(lease, conditioning(lease.prompt))
        for index in range(min(upto, len(lease.seeds))):
            self.exchange.submit_candidate(lease, candidate(lease, index))

    @precondition(lambda self: self.leases)
    @rule(which=SOME)
    def fail(self, which: int) -> None:
        self.exchange.fail_group(self.leases[which % len(self.leases)], "broken image")

    @rule(limit=st.integers(1, 8), answered=st.integers(0, 8))
    def score(self, limit: int, answered: int) -> None:
        tasks = list(self.exchange.lease_candidates("rewarder", limit))
        self.exchange.submit_scores("rewarder", [score(task) for task in tasks[:answered]])
        self.tasks += tasks[answered:]

    @precondition(lambda self: self.tasks)
    @rule(which=SOME, broken=st.booleans())
    def score_late(self, which: int, broken: bool) -> None:
        task = self.tasks[which % len(self.tasks)]
        self.exchange.submit_scores("rewarder", [score(task, nan if broken else None)])

    @rule(commits=st.integers(0, 2))
    def train(self, commits: int) -> None:
        ordinals = [one.pair.ordinal for one in self.exchange.lease_pairs("learner", self.step + 1, 2)]
        if not ordinals or not commits:
            return
        self.step += 1
        for _ in range(commits):
            self.exchange.commit_step(self.step, ordinals)
        if self.step % self.config.learner.steps_per_push == 0:
            self.announce()

    def announce(self) -> None:
        version = self.exchange.next_version()
        assert version > self.version
        self.version = version
        self.exchange.announce(weight_version(version, self.step, self.step // self.config.learner.steps_per_push))

    @precondition(lambda self: self.step > self.checkpoint)
    @rule()
    def mark(self) -> None:
        self.exchange.mark(self.step)
        self.oldest = self.step if self.config.learner.keep_checkpoints == 1 else self.checkpoint
        self.checkpoint = self.step

    @rule(older=st.booleans())
    def resume(self, older: bool) -> None:
        """The learner's process dies and goes on from a checkpoint."""
        self.exchange.close()
        self.open()
        self.step = self.checkpoint = self.oldest if older else self.checkpoint
        self.exchange.rollback(self.step)

    @rule()
    def reopen(self) -> None:
        self.exchange.close()
        self.open()

    @rule(seconds=st.sampled_from([-500.0, -1.0, 30.0, 61.0, 1e6]))
    def jump(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(worker=st.sampled_from(["sampler", "rewarder", "learner"]))
    def renew(self, worker: str) -> None:
        self.exchange.renew(worker)

    @rule(count=st.integers(1, 3), versioned=st.booleans())
    def enqueue(self, count: int, versioned: bool) -> None:
        self.exchange.enqueue(heldout(count), self.exchange.current_version() if versioned else None)

    @invariant()
    def conserves(self) -> None:
        self.exchange.check()
        counts = self.exchange.counts()
        assert total(counts) >= self.frontier
        self.frontier = total(counts)
        trained = counts[State.TRAINED] * self.config.exchange.max_times_trained
        assert trained <= 2 * self.step * self.config.exchange.max_times_trained
        results = self.exchange.results(Purpose.EVAL, 0)
        assert len(results) <= self.exchange.counts(Purpose.EVAL)[State.DONE]


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
