"""Names of the roles, processes and phases of a run, as used in configs, metrics and logs."""

from __future__ import annotations

HUB, LEARNER, SAMPLER, REWARDER, SERIAL = "hub", "learner", "sampler", "rewarder", "serial"
ROLES = (SAMPLER, REWARDER, LEARNER)  # in the order in which data flows
PROCESSES = (HUB, LEARNER, SAMPLER, REWARDER)
PHASES = EVALUATING_BASE, TRAINING, EVALUATING_ALIGNED, COLLECTING = (
    "evaluating base",
    "training",
    "evaluating aligned",
    "collecting",
)


def role_of(worker: str) -> str:
    """``sampler-3`` -> ``sampler``; empty if `worker` is not the name of a worker."""
    return worker.rpartition("-")[0]
