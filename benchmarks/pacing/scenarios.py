"""The pipelines of the benchmark, and the ways to run each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deploy.planning.pacing import Pipeline

N = 4  # candidates of a group
FAST, BALANCED, SLOW = 0.1, 1.0, 4.0  # seconds of a step as a share of the seconds to sample its groups
SAMPLE = 1.0  # mean seconds of a candidate; everything else is relative to it


@dataclass(frozen=True)
class Scenario:
    """A pipeline and its durations. `one.max_lag` and `one.pipeline_depth` are set by the way it is run."""

    name: str
    one: Pipeline
    tail: float
    balance: float


def scenario(samplers: int, pairs: int, tail: float, balance: float = FAST, per_push: int = 1) -> Scenario:
    """A pipeline that pushes every `per_push` steps; `balance`: `FAST`, `BALANCED` or `SLOW`."""
    sampling = SAMPLE * N * pairs / samplers
    one = Pipeline(
        samplers=samplers,
        rewarders=max(1, samplers // 7),
        candidates=N,
        batch_size=pairs,
        sample=SAMPLE,
        score=0.01 * SAMPLE,
        step=balance * sampling,
        steps=400,
        steps_per_push=per_push,
        load=0.02 * SAMPLE,
    )
    stages = {BALANCED: "balanced", FAST: "fast learner", SLOW: "slow learner"}[balance]
    pushes = "" if per_push == 1 else f", a push every {per_push} steps"
    times = "constant times" if tail == 0 else f"tail {tail:g}"
    return Scenario(f"{samplers} samplers, {pairs} pairs a step{pushes}, {stages}, {times}", one, tail, balance)


def scenarios() -> Iterator[Scenario]:
    """All scenarios, the smallest first."""
    for samplers, pairs in ((7, 2), (7, 8), (28, 8), (28, 16), (56, 16), (56, 32), (56, 64)):
        for tail in (0.0, 0.5):
            yield scenario(samplers, pairs, tail)
    for samplers, pairs in ((7, 8), (28, 16), (56, 64)):
        for tail in (0.0, 0.5):
            yield scenario(samplers, pairs, tail, BALANCED)
    yield scenario(28, 16, 0.5, SLOW)
    yield scenario(28, 8, 0.5, per_push=4)


def ways(one: Pipeline) -> dict[str, Pipeline]:
    """The same pipeline, run in different ways.

    Synchronous is OnlineVPO's Algorithm 1 on the same workers: sample with the current policy, score, train, push.
    One step off: the next batch is sampled, and no more than that, while the learner trains on this one.
    """
    deep = 1000 * one.batch_size
    batch = one.batch_size * one.steps_per_push
    found = {
        "synchronous": replace(one, max_lag=0, pipeline_depth=deep),
        "one step off": replace(one, max_lag=1, pipeline_depth=batch),
    }
    return found | {f"max_lag {lag}": replace(one, max_lag=lag, pipeline_depth=deep) for lag in (1, 2, 4, 8)}
