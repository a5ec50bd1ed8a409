"""A fleet in compressed time: the real exchange and its service in one process, all workers as threads of another.

Workers make the calls of `deploy/runtime/workers`, with the simulated sampler and rewarder. No weights are sent: a
sampler can load a version as soon as it is announced. One sampler may die midway.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from actors.simulated import SimulatedSampler
from common.config import RunConfig, load_config
from common.errors import ConfigError
from common.exchange.api import State, Work
from common.exchange.local import LocalExchange
from common.exchange.remote import RemoteExchange, exchange_service
from common.messages import Prompt, WeightVersion
from common.rpc.server import serving
from common.simulation import Simulation
from deploy.planning.pacing import Pace, Pipeline
from rewarders.simulated import SimulatedRewarder

SMALL = 2000  # bytes of latents, clips and embeddings: bytes are not what is measured here
START_SECONDS = 60.0  # until the service answers
EVERY = 8  # steps per checkpoint, which lets the exchange delete blobs


@dataclass(frozen=True)
class Measured:
    """What a fleet did, in the uncompressed time of its pipeline."""

    pace: Pace
    wasted: int  # candidates that were sampled for nothing


def run(one: Pipeline, tail: float, scale: float, warm_up: int, dies: bool = False) -> Measured:
    """Run `one.steps` steps with all durations times `scale`. The figures are of the steps after `warm_up`.

    `dies`: a sampler ends halfway, in the middle of a candidate, and its leases are released.
    """
    config = settings(one, tail, scale)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        server = context.Process(target=serve, args=(there, folder, config), daemon=True)
        server.start()
        stack.callback(server.join, START_SECONDS)
        if not here.poll(START_SECONDS):
            raise ConfigError(f"the exchange did not start within {START_SECONDS:g} s")
        fleet = Fleet(config, here.recv(), here)
        try:
            fleet.run(dies)
        finally:
            here.send(None)
            counts, wasted = here.recv() if here.poll(START_SECONDS) else ({}, {})
    return Measured(fleet.pace(one, scale, warm_up, counts), sum(wasted.values()))


def settings(one: Pipeline, tail: float, scale: float) -> RunConfig:
    """The configuration of a simulated run of this pipeline."""
    flags: dict[str, Any] = {
        "simulate": True, "steps": one.steps, "sampler.candidates": one.candidates,
        "sampler.micro_batch": one.micro_batch, "learner.batch_size": one.batch_size,
        "learner.steps_per_push": one.steps_per_push, "learner.checkpoint_every": EVERY * one.steps_per_push,
        "exchange.max_lag": one.max_lag, "exchange.pipeline_depth": one.pipeline_depth, "reward.batch": one.score_batch,
        "cluster.sampler.count": one.samplers, "cluster.rewarder.count": one.rewarders, "simulation.tail": tail,
    }  # fmt: skip
    flags |= {f"simulation.{name}_seconds": scale * getattr(one, name) for name in ("sample", "score", "step", "load")}
    return load_config(flags=flags | {f"simulation.{name}_bytes": SMALL for name in ("latents", "clip", "embeds")})


def serve(pipe: Connection, folder: str, config: RunConfig) -> None:
    """Serve an exchange. Sends its address, releases the workers whose names arrive, and ends with None."""
    exchange = LocalExchange(Path(folder), config, lambda n: Prompt(n, f"prompt-{n}", "a cat walks"))
    with serving(exchange_service(exchange)) as service:
        pipe.send(service.address)
        while (name := pipe.recv()) is not None:
            exchange.release(name)
    exchange.check()
    pipe.send(({state.value: count for state, count in exchange.counts().items()}, exchange.wasted()))
    exchange.close()


@dataclass
class Fleet:
    """The workers' threads, and what they record."""

    config: RunConfig
    address: str
    hub: Connection
    ended: Event = field(default_factory=Event)
    busy: list[tuple[str, float, float]] = field(default_factory=list)  # role, begin, end
    steps: list[float] = field(default_factory=list)  # ends
    lags: list[int] = field(default_factory=list)  # of trained groups

    def run(self, dies: bool) -> None:
        """Run until the last step."""
        cluster = self.config.cluster
        duties: list[Callable[[], None]] = [self._learner]
        duties += [partial(self._rewarder, f"rewarder-{n}") for n in range(cluster.rewarder.count)]
        duties += [partial(self._sampler, f"sampler-{n}", dies and n == 0) for n in range(cluster.sampler.count)]
        threads = [Thread(target=duty, daemon=True) for duty in duties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _timed(self, role: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        done = work()
        if done:
            self.busy.append((role, began, time.monotonic()))
        return done

    def _sampler(self, name: str, dies: bool) -> None:
        sampler, seen = SimulatedSampler(self.config, name), 0
        with RemoteExchange.at(self.address, name) as exchange:
            while not self.ended.is_set():
                wanted = exchange.wanted_version(sampler.version)
                if wanted != sampler.version:
                    sampler.load(WeightVersion(wanted, 0, wanted, "full", wanted, (), ""), {})
                    continue
                if dies and len(self.steps) >= self.config.steps // 2:
                    exchange.lease_sampling(name, sampler.version)  # and never comes back
                    self.hub.send(name)
                    return
                if not self._timed("sampler", lambda: sampler.work(exchange)):
                    seen = exchange.changes(Work.SAMPLING, seen)

    def _rewarder(self, name: str) -> None:
        rewarder, seen = SimulatedRewarder(self.config, name), 0
        with RemoteExchange.at(self.address, name) as exchange:
            while not self.ended.is_set():
                if not self._timed("rewarder", lambda: rewarder.work(exchange)):
                    seen = exchange.changes(Work.SCORING, seen)

    def _learner(self) -> None:
        seen, draws, rules = 0, Simulation(self.config), self.config.learner
        with RemoteExchange.at(self.address, "learner-0") as exchange:
            while (step := len(self.steps) + 1) <= self.config.steps:
                groups = exchange.lease_batch("learner-0", step, rules.batch_size)
                if not groups:
                    seen = exchange.changes(Work.TRAINING, seen)
                    continue
                self._timed("learner", lambda at=step: draws.work(self.config.simulation.step_seconds, "step", at) or 1)
                exchange.commit_step(step, [one.ordinal for one in groups])
                self.lags += [one.lag for one in groups]
                if step % rules.steps_per_push == 0:
                    version = step // rules.steps_per_push
                    exchange.announce(WeightVersion(version, step, version, "full", version, (), "0" * 32))
                if step % rules.checkpoint_every == 0:
                    exchange.record_checkpoint(step)
                self.steps.append(time.monotonic())
        self.ended.set()

    def pace(self, one: Pipeline, scale: float, warm_up: int, counts: dict[str, int]) -> Pace:
        """The figures in the uncompressed time of the pipeline; counts of groups are of the whole run."""
        began, end = self.steps[warm_up - 1], self.steps[-1]
        seconds, workers = end - began, {"sampler": one.samplers, "rewarder": one.rewarders, "learner": 1}
        busy = {
            role: sum(max(0.0, min(end, to) - max(began, at)) for who, at, to in self.busy if who == role) / seconds / n
            for role, n in workers.items()
        }
        return Pace(
            seconds=seconds / scale,
            steps=one.steps - warm_up,
            busy=busy,
            waits={},
            expired=counts.get(State.EXPIRED, 0),
            groups=sum(counts.values()),
            lag=sum(self.lags) / max(1, len(self.lags)),
            candidates=one.candidates * sum(counts.values()),
        )
