"""The processes of a run and the phases it goes through, by the names that configs, metrics and logs use."""

from __future__ import annotations

HUB, LEARNER, SAMPLER, REWARDER, SERIAL = "hub", "learner", "sampler", "rewarder", "serial"
ROLES = (SAMPLER, REWARDER, LEARNER)  # in the order in which data flows
PROCESSES = (HUB, LEARNER, SAMPLER, REWARDER)
PHASES = EVALUATING_BASE, TRAINING, EVALUATING_ALIGNED = "evaluating base", "training", "evaluating aligned"


def role_of(worker: str) -> str:
    """``sampler-3`` -> ``sampler``; empty for what is no worker's name."""
    return worker.rpartition("-")[0]
