"""How a cluster run would go: the plan's times through the event model of `deploy/planning/pacing.py`.

| symbol | meaning                                   | from                                                     |
|--------|-------------------------------------------|----------------------------------------------------------|
| T_c    | seconds of a candidate on a sampler       | `plan`: FLOPs / (peak x MFU)                             |
| T_s    | seconds of an optimizer step              | the same                                                 |
| T_r    | seconds to score a clip                   | given (`--score-seconds`): rewards are anybody's code    |
| T_w    | seconds from a push to staged weights     | bytes of a version x nodes of samplers / bandwidth       |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.config import RunConfig
from deploy.planning.memory import GIGA
from deploy.planning.pacing import Pace, Pipeline, log_normal, simulate
from deploy.planning.plan import Plan

GPUS_PER_NODE = 8  # assumed
WARM_UP, MEASURED = 40, 160  # steps of the simulation, at least as many pushes as fit
LONGEST = 20_000  # candidates of one simulation
NEARLY = 0.95  # a share of the bound that is worth no further change
MORE_LAG = 8  # pushes of lag beyond the configured one that are tried


@dataclass(frozen=True)
class Cluster:
    """What the plan does not know of the machines."""

    score_seconds: float = 1.0  # of one clip
    gigabits: float = 100.0  # per second, out of the hub's node
    tail: float = 0.2  # standard deviation of the logarithm of every duration


@dataclass(frozen=True)
class Forecast:
    """The expected course of a run."""

    pipeline: Pipeline
    pace: Pace
    gpus: float  # of all roles
    rewarders_needed: int  # for the samplers not to wait for scores
    training_hours: float
    other_hours: float  # evaluation, and probes of the guardrails
    enough_lag: int | None  # the smallest max_lag, from the configured one, with 95 % of the bound; None if none has
    scratch: int  # bytes on a node of samplers

    @property
    def share(self) -> float:
        """Steps per second as a share of what the slowest stage allows."""
        return self.pace.rate / self.pipeline.bound


def forecast(made: Plan, cluster: Cluster) -> Forecast:
    """Simulates the plan of a cluster run. Raises `ValueError` for a run that samples nothing or is serial."""
    config = made.config
    if config.mode != "cluster" or config.offline:
        raise ValueError("only a cluster run that samples has a pace to forecast")
    one = pipeline_of(made, cluster)
    pace = _simulated(one, cluster)
    return Forecast(
        pipeline=one,
        pace=pace,
        gpus=sum(config.cluster.placement_of(role).count * config.cluster.placement_of(role).gpus
                 for role in ("sampler", "rewarder", "learner")),
        rewarders_needed=max(1, math.ceil(one.samplers / one.sample * one.score)),
        training_hours=config.steps / pace.rate / 3600,
        other_hours=_held_out_clips(config) * one.sample / one.samplers / 3600,
        enough_lag=_enough_lag(one, pace, cluster),
        scratch=3 * made.disk.push,  # the loaded version, the staged one, and one that arrives
    )  # fmt: skip


def pipeline_of(made: Plan, cluster: Cluster) -> Pipeline:
    """The pipeline of a plan. Its number of steps is that of the simulation, not of the run."""
    config = made.config
    count = config.cluster.sampler.count
    nodes = math.ceil(count * config.cluster.sampler.gpus / GPUS_PER_NODE) or 1
    seconds = 8 * made.disk.push * nodes / (cluster.gigabits * GIGA)
    return Pipeline(
        samplers=count,
        rewarders=config.cluster.rewarder.count,
        candidates=config.sampler.candidates,
        batch_size=config.learner.batch_size,
        sample=made.pace.clip,
        score=cluster.score_seconds,
        step=made.pace.step,
        steps=_steps(config),
        steps_per_push=config.learner.steps_per_push,
        max_lag=config.exchange.max_lag,
        pipeline_depth=config.exchange.pipeline_depth,
        micro_batch=config.sampler.micro_batch,
        score_batch=config.reward.batch,
        order=config.exchange.order,
        sync=seconds,
    )


def _steps(config: RunConfig) -> int:
    """Steps to simulate: some warm-up and some pushes, but at most `LONGEST` candidates."""
    clips = config.learner.batch_size * config.sampler.candidates
    wanted = WARM_UP + max(MEASURED, 20 * config.learner.steps_per_push)
    return max(4 * config.learner.steps_per_push, min(wanted, LONGEST // clips))


def _simulated(one: Pipeline, cluster: Cluster) -> Pace:
    return simulate(one, log_normal(cluster.tail), warm_up=one.steps // 5)


def _enough_lag(one: Pipeline, pace: Pace, cluster: Cluster) -> int | None:
    """See `Forecast.enough_lag`."""
    if pace.rate >= NEARLY * one.bound:
        return one.max_lag
    for lag in range(one.max_lag + 1, one.max_lag + MORE_LAG + 1):
        other = replace(one, max_lag=lag)
        if _simulated(other, cluster).rate >= NEARLY * one.bound:
            return lag
    return None


def _held_out_clips(config: RunConfig) -> int:
    """Clips of the comparison of both models, and of all readings of the guardrails."""
    pushes = config.steps // config.learner.steps_per_push
    readings = pushes // config.guardrails.every_pushes
    return 2 * config.evaluation.prompts + config.guardrails.prompts * (1 + readings)


def lines(found: Forecast, cluster: Cluster, config: RunConfig) -> list[str]:
    """The forecast as lines of text."""
    one, pace = found.pipeline, found.pace
    shown = [
        "the run, simulated with the exchange's rules",
        f"  ({cluster.score_seconds:g} s a score: --score-seconds; {cluster.gigabits:g} Gbit/s out of the hub: "
        f"--gigabits; durations of tail {cluster.tail:g}: --tail)",
        f"  {found.gpus:8g}    GPUs in all",
        f"  {3600 * pace.rate:8.1f}    steps an hour, {found.share:.0%} of what the slowest stage allows",
        f"  {found.training_hours:8.1f} h  training, {config.steps} steps",
        f"  {found.other_hours:8.1f} h  evaluation and probes",
        f"  {one.steps_per_push / pace.rate / 60:8.1f} min between two pushes",
        f"  {one.sync / 60:8.1f} min from a push to the weights on all samplers ({GPUS_PER_NODE} on a node share them)",
        f"  {1 - pace.busy['learner']:8.0%}    of the time the learner waits for pairs",
        f"  {sum(pace.waits.values()):8.0%}    of the time a sampler waits{_reasons(pace.waits)}",
        f"  {found.rewarders_needed:8d}    rewarders keep up with the samplers; there are {one.rewarders}",
        f"  {found.scratch / GIGA:8.0f} GB scratch on every node of samplers",
    ]
    if found.enough_lag is None:
        shown.append("  no exchange.max_lag brings it to 95 %: raise learner.batch_size or steps_per_push, or take "
                     "fewer samplers")  # fmt: skip
    elif found.enough_lag > one.max_lag:
        shown.append(f"  exchange.max_lag = {found.enough_lag} would bring it to {NEARLY:.0%} or more")
    return shown


def _reasons(waits: dict[str, float]) -> str:
    names = {"max_lag": "exchange.max_lag", "pipeline_depth": "exchange.pipeline_depth", "weights": "weights"}
    ranked: Sequence[str] = sorted((why for why in waits if waits[why] >= 0.01), key=lambda why: -waits[why])
    return f": {', '.join(f'{waits[why]:.0%} for {names.get(why, why)}' for why in ranked)}" if ranked else ""
