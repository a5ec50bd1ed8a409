"""What a run asks of Ray, and whether the cluster can ever hold it. Pure functions of node resources.

Ray places a fraction of a GPU on one GPU, and a whole number on as many whole ones. The hub and all learner ranks share
a node. They are placed first, then the rewarders, then the samplers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from common.config import RunConfig
from common.roles import LEARNER, REWARDER, SAMPLER

NODE = "node:"  # prefix of Ray's own resource that names a node


@dataclass(frozen=True)
class Ask:
    """What the processes of one role ask for."""

    role: str
    count: int
    gpus: float  # of each process
    pin: str  # custom resource that their nodes must have; empty: any node
    together: bool = False  # all on one node

    def __str__(self) -> str:
        where = f" on nodes with {self.pin}" if self.pin else ""
        return f"{self.count} {self.role}{'s' if self.count > 1 else ''} x {self.gpus:g} GPU{where}"


@dataclass
class Node:
    """A node with what is left of its GPUs."""

    resources: Mapping[str, float]
    free: list[float] = field(default_factory=list)  # of each GPU

    def __post_init__(self) -> None:
        self.free = [1.0] * int(self.resources.get("GPU", 0))

    def take(self, ask: Ask) -> bool:
        """Place one process. False if it does not fit."""
        if ask.pin and ask.pin not in self.resources:
            return False
        if 0 < ask.gpus < 1:
            fits = [place for place, left in enumerate(self.free) if left >= ask.gpus - 1e-6]
            if fits:
                self.free[min(fits, key=lambda place: self.free[place])] -= ask.gpus
            return bool(fits)
        whole = [place for place, left in enumerate(self.free) if left == 1.0]
        if len(whole) < ask.gpus:
            return False
        for place in whole[: int(ask.gpus)]:
            self.free[place] = 0.0
        return True


def asks(config: RunConfig) -> list[Ask]:
    """What a run asks for, in the order in which it is placed."""
    found = []
    for role in (LEARNER, REWARDER, SAMPLER):
        where = config.cluster.placement_of(role).node
        found.append(Ask(role, config.workers_of(role), config.gpus_of(role), where, together=role == LEARNER))
    return [ask for ask in found if ask.count]


def place(wanted: Sequence[Ask], nodes: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """The number of processes of each role that fit on the nodes, which are empty: of four ways to fill them the best.

    Ray may find none of them, so this says what can never fit, not what will.
    """
    ways = product((nodes, nodes[::-1]), (False, True))
    return max((_place(wanted, *way) for way in ways), key=lambda placed: sum(placed.values()))


def _place(wanted: Sequence[Ask], nodes: Sequence[Mapping[str, float]], turn: bool) -> dict[str, int]:
    """Fill the nodes in their order; with `turn` the other way round for what comes after the learner."""
    left, placed = [Node(one) for one in nodes], dict[str, int]()
    for ask in wanted:
        if ask.together:
            placed[ask.role] = _place_together(ask, left)
            left = left[::-1] if turn else left
        else:
            placed[ask.role] = sum(any(node.take(ask) for node in left) for _ in range(ask.count))
    return placed


def _place_together(ask: Ask, nodes: list[Node]) -> int:
    """All processes on the node that they leave the least of; else as many as fit on one node."""
    best, fitted = None, 0
    for node in sorted(nodes, key=lambda one: sum(one.free)):
        trial = Node(node.resources)
        trial.free = list(node.free)
        count = sum(trial.take(ask) for _ in range(ask.count))
        if count > fitted:
            best, fitted = (node, trial), count
        if count == ask.count:
            break
    if best is not None and fitted == ask.count:
        best[0].free = best[1].free
    return fitted


def shortfall(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> str:
    """Why a cluster of these nodes can never hold the run, in one line; empty if it can."""
    wanted = asks(config)
    placed = place(wanted, nodes)
    missing = [ask for ask in wanted if placed[ask.role] < ask.count]
    if not missing:
        return ""
    total = sum(ask.count * ask.gpus for ask in wanted)
    has = sum(one.get("GPU", 0) for one in nodes)
    line = f"the run asks for {total:g} GPUs ({', '.join(map(str, wanted))}), Ray has {has:g} on {len(nodes)} nodes: "
    fits = [f"of {ask.count} {ask.role}s {placed[ask.role]} fit{' on one node' * ask.together}" for ask in missing]
    keys = [f"--cluster.{ask.role}.count {placed[ask.role]}" for ask in missing if placed[ask.role]]
    out = f"use {' '.join(keys)}, " if keys else ""
    return f"{line}{', '.join(fits)}; {out}fewer GPUs per process, or cluster.grows if the cluster does"
