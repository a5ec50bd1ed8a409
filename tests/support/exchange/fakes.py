"""Fake prompts, candidates and scores made from hashes, to test the exchange without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from common.config import DIMENSIONS, RunConfig, load_config
from common.exchange.api import Submitted, WorkerExchange
from common.exchange.local import LocalExchange
from common.messages import (
    Candidate,
    Conditioning,
    Prompt,
    Purpose,
    SamplingLease,
    Score,
    ScoreTask,
    SerializedTensor,
    WeightVersion,
)


class Clock:
    """A clock that only advances when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def small(**flags: Any) -> RunConfig:
    """N = 2, two pairs per step, a version every step, max_lag 1; `flags` as in `exchange__max_lag=0`."""
    base = {"sampler.candidates": 2, "learner.batch_size": 2, "learner.steps_per_push": 1}
    base |= {"learner.keep_checkpoints": 1}
    return load_config(flags=base | {name.replace("__", "."): value for name, value in flags.items()})


def source(ordinal: int) -> Prompt:
    """Endless training prompts, with three alternating first frames."""
    return Prompt(ordinal, f"train-{ordinal % 3}", f"cat {ordinal % 3} walks", image=b"png" * (1 + ordinal % 3))


def heldout(count: int, purpose: Purpose = Purpose.EVAL) -> list[Prompt]:
    """Held-out prompts, numbered from 0."""
    return [Prompt(place, f"held-{place}", "dog jumps", image=b"dog", purpose=purpose) for place in range(count)]


def open_exchange(folder: Path, config: RunConfig, clock: Clock | None = None) -> LocalExchange:
    return LocalExchange(folder, config, source, clock or Clock())


def digest(*parts: object) -> bytes:
    """8 bytes that depend on all parts."""
    return blake2b(repr(parts).encode(), digest_size=8).digest()


def array(data: bytes) -> SerializedTensor:
    return SerializedTensor("uint8", (1, 1, len(data)), data)


def conditioning(prompt: Prompt) -> Conditioning:
    return Conditioning(array(digest("text", prompt.text)), array(digest("image", prompt.image)))


def candidate(lease: SamplingLease, index: int, weights: object = 0) -> Candidate:
    """The candidate that a sampler with `weights` makes from a seed."""
    data = digest(weights, lease.prompt.id, lease.seeds[index])
    name = f"{lease.prompt.ordinal}-{index}-v{lease.version}"
    return Candidate(
        *(name, lease.prompt.ordinal, index, lease.seeds[index], lease.version), array(data), b"mp4" + data, 8, 48, 64
    )


def values(raw: float) -> dict[str, float]:
    """The same raw value in all six dimensions."""
    return dict.fromkeys(DIMENSIONS, raw)


def score(task: ScoreTask, raw: float | None = None) -> Score:
    """A raw score, by default a function of the clip: 0, 10, ... 90."""
    given = values(10.0 * (task.clip[3] % 10) if raw is None else raw)
    return Score(task.candidate_id, "heads-1", given, purpose=task.purpose)


def weight_version(version: int, step: int, pushes: int) -> WeightVersion:
    return WeightVersion(version, step, pushes, "full", version, (), "0" * 32)


def sample(exchange: WorkerExchange, version: int = 0, worker: str = "sampler-0") -> SamplingLease | None:
    """Sample one complete group, if admission allows one. Returns the last of its leases."""
    lease = exchange.lease_sampling(worker, version)
    while lease is not None:
        exchange.submit_conditioning(lease, conditioning(lease.prompt))
        for index in lease.indices:
            assert exchange.submit_candidate(lease, candidate(lease, index)).accepted
        if lease.indices[-1] == len(lease.seeds) - 1:
            break
        lease = exchange.lease_sampling(worker, version)
    return lease


def score_all(exchange: WorkerExchange, raw: Mapping[str, float] | None = None) -> list[Submitted]:
    """Score all waiting candidates, with `raw` of the candidate's id if given."""
    answers: list[Submitted] = []
    while tasks := exchange.lease_candidates("rewarder-0", 16):
        answers += exchange.submit_scores(
            "rewarder-0", [score(task, (raw or {}).get(task.candidate_id)) for task in tasks]
        )
    return answers


def make_pairs(exchange: WorkerExchange, count: int, version: int = 0) -> list[int]:
    """Make `count` pairs whose first candidate wins 80 to 30. Returns their ordinals."""
    leases = [sample(exchange, version) for _ in range(count)]
    ordinals = [lease.prompt.ordinal for lease in leases if lease is not None]
    assert len(ordinals) == count
    raw = {f"{ordinal}-0-v{version}": 80.0 for ordinal in ordinals}
    raw |= {f"{ordinal}-{index}-v{version}": 30.0 for ordinal in ordinals for index in (1, 2, 3)}
    score_all(exchange, raw)
    return ordinals


def train(exchange: WorkerExchange, step: int, count: int = 2) -> list[int]:
    """Lease and commit one step. Returns the ordinals that it used."""
    pairs = exchange.lease_batch("learner-0", step, count)
    ordinals = [training.ordinal for training in pairs]
    if ordinals:
        exchange.commit_step(step, ordinals)
    return ordinals


def total(counts: Mapping[Any, int], states: Sequence[Any] = ()) -> int:
    """The sum of the counts, or of some states' counts."""
    return sum(number for state, number in counts.items() if not states or state in states)
