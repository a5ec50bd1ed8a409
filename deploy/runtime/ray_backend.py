"""Ray calls of a cluster run: connection, placement group, and the actors of hub and workers.

`deploy/runtime/driver.py` decides when they are called.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from common.config import ClusterConfig, RunConfig
from common.errors import ConfigError
from common.roles import LEARNER, REWARDER, SAMPLER
from deploy.machine.folders import ray_folder
from deploy.machine.limits import raise_open_files
from deploy.machine.ray_address import check_ray, refusal
from deploy.runtime.messages import RENDEZVOUS_PREFIX
from deploy.runtime.placement import shortfall

if TYPE_CHECKING:  # the driver imports no torch, so it starts fast and stays small
    from rewarders.interface import Reward

SHARE = 0.001  # amount of a node's custom resource per worker: the resource is a label, not a quantity
OBJECT_STORE = 200_000_000  # bytes; nothing large goes through Ray
# For a Ray that the run starts itself. Over weeks, task records would fill its memory, and its logs the disk.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_ROTATION_MAX_BYTES": "10000000",
    "RAY_ROTATION_BACKUP_COUNT": "1",
}


@contextmanager
def connected(config: ClusterConfig) -> Iterator[bool]:
    """Connects to the configured Ray. Yields True if it was started for this run and ends with it.

    Raises `ConfigError` if Ray cannot be reached, or a Ray of its own cannot be started.
    """
    if ray.is_initialized():
        yield False
        return
    raise_open_files()
    name = "cluster.address" if config.address else "RAY_ADDRESS"
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "_temp_dir": str(ray_folder())}
        for variable, value in QUIET.items():
            os.environ.setdefault(variable, value)
    else:
        check_ray(name, address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has replaced it with its own
    except (OSError, RuntimeError, ValueError, RayError) as error:
        line = " ".join(str(error).split())
        if address == "local":
            raise ConfigError(f"Ray cannot be started on this machine: {line:.300}") from None
        why = refusal(line) or f"{line:.300}"
        raise ConfigError(f"{name} = {address!r}: no Ray can be reached there: {why}") from None
    try:
        yield address == "local"
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Reserved:
    """The resources that a run holds before its samplers start, one bundle a process."""

    learner: PlacementGroup  # the hub, then the ranks, all on one node
    rewarders: PlacementGroup


@contextmanager
def placed(config: RunConfig) -> Iterator[Reserved]:
    """Reserves resources for the hub, the learner's ranks and the rewarders, so that no sampler can take their place.

    Raises `ConfigError` if the cluster can never hold the run (unless `cluster.grows`), and if the reserved resources
    are not free within `cluster.placement_seconds`.
    """
    never = shortfall(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if never and not config.cluster.grows:
        raise ConfigError(never)
    scorers = [_bundle_of(config, REWARDER)] * config.workers_of(REWARDER)
    with (
        _reserved(config, bundles(config), "STRICT_PACK") as learner,
        _reserved(config, scorers, "PACK") as rewarders,
    ):
        yield Reserved(learner, rewarders)


@contextmanager
def _reserved(config: RunConfig, asked: list[dict[str, float]], strategy: str) -> Iterator[PlacementGroup]:
    group = placement_group(asked, strategy=strategy)
    try:
        if not group.wait(config.cluster.placement_seconds):
            where = "no node" if strategy == "STRICT_PACK" else "no nodes"
            raise ConfigError(
                f"{where} with {asked} within cluster.placement_seconds = {config.cluster.placement_seconds:g} s; "
                f"Ray has {ray.cluster_resources()}, of these free: {ray.available_resources()}"
            )
        yield group
    finally:
        remove_placement_group(group)


def bundles(config: RunConfig) -> list[dict[str, float]]:
    """Returns the bundles of the placement group of the learner's node: the hub's, then one per rank."""
    hub = {"CPU": SHARE} | pin(config.cluster.learner.node)
    return [hub, *([_bundle_of(config, LEARNER)] * config.workers_of(LEARNER))]


def _bundle_of(config: RunConfig, role: str) -> dict[str, float]:
    """The resources of one process of a role."""
    asked = {"CPU": SHARE, "GPU": config.gpus_of(role)} | pin(config.cluster.placement_of(role).node)
    return {name: count for name, count in asked.items() if count}


def pin(resource: str) -> dict[str, float]:
    """Resources that pin an actor to nodes with the custom Ray resource `resource`; "" allows any node."""
    return {resource: SHARE} if resource else {}


def ray_exporters() -> list[str]:
    """Returns ``HOST:PORT`` of the exporter of Ray's own metrics on every live node."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in alive]


class Process:
    """The Ray actor around every process of a run. It creates one object, with its imports, where Ray placed it.

    One thread runs the object's `run`; other threads handle the remaining calls.
    """

    def __init__(self, kind: str, home: str, *arguments: Any) -> None:
        """`kind` is ``module:Class``. Relative paths are resolved against `home`, the driver's working directory."""
        raise_open_files()  # of this node
        if Path(home).is_dir():
            os.chdir(home)
        module, name = kind.split(":")
        self._object = getattr(import_module(module), name)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the object."""
        return getattr(self._object, method)(*arguments)

    def host(self) -> str:
        """Returns the IP address of this node."""
        return ray.util.get_node_ip_address()

    def node(self) -> str:
        """Returns node, process id and GPUs as text."""
        context = ray.get_runtime_context()
        gpus = ", ".join(context.get_accelerator_ids().get("GPU", []))
        text = f"node {context.get_node_id()[:8]} ({self.host()}), process {os.getpid()}"
        return f"{text}, GPU {gpus}" if gpus else text


def launch(kind: str, arguments: Sequence[Any], **options: Any) -> Any:
    """Creates a `Process` asynchronously; it is running once it answers. `options` are Ray's actor options."""
    actor: Any = ray.remote(Process)
    return actor.options(num_cpus=0, max_concurrency=4, **options).remote(kind, str(Path.cwd()), *arguments)


@dataclass
class RestartUnit:
    """Processes that are restarted together: one worker, or all ranks of the learner."""

    name: str
    make: Callable[[], list[Any]]
    members: list[str]  # worker names of the processes
    processes: list[Any] = field(default_factory=list)
    running: list[Any] = field(default_factory=list)  # pending results of their `run`
    starts_at: float | None = 0.0  # time of the next start; None: running or done
    up: bool = False  # has reported its node

    @property
    def is_sampler(self) -> bool:
        """Whether the run can continue without it."""
        return self.name.startswith("sampler")


def launch_hub(config: RunConfig, held: Reserved) -> Any:
    """Launches the hub in its bundle."""
    return launch("deploy.runtime.hub:Hub", [config], **_bundle(held.learner, 0))


def restart_units(config: RunConfig, held: Reserved, rewards: Sequence[Reward] | None) -> list[RestartUnit]:
    """Returns the learner, if the run has one, the rewarders and the samplers; `make` launches their processes."""
    cluster = config.cluster
    ranks = [f"learner-{rank}" for rank in range(config.workers_of(LEARNER))]
    units = [RestartUnit(LEARNER, lambda: _learners(config, held.learner, ranks), ranks)] if ranks else []
    for number in range(cluster.rewarder.count):
        units.append(_worker(config, REWARDER, number, _bundle(held.rewarders, number), rewards))
    anywhere = {"resources": pin(cluster.sampler.node), "scheduling_strategy": "SPREAD"}
    return units + [_worker(config, SAMPLER, number, anywhere) for number in range(cluster.sampler.count)]


def _worker(config: RunConfig, role: str, number: int, where: dict[str, Any], *more: Any) -> RestartUnit:
    name, options = f"{role}-{number}", {"num_gpus": config.gpus_of(role)} | where
    kind = f"deploy.runtime.workers.{role}:{role.title()}Worker"
    return RestartUnit(name, lambda: [launch(kind, [config, name, *more], **options)], [name])


def _learners(config: RunConfig, group: PlacementGroup, names: Sequence[str]) -> list[Any]:
    """Launches all ranks. They use a new file for rendezvous, because earlier groups leave theirs behind."""
    kind, rendezvous = "deploy.runtime.workers.learner:LearnerWorker", f"{RENDEZVOUS_PREFIX}{uuid4().hex}"
    gpus = config.cluster.learner.gpus
    return [
        launch(kind, [config, name, rank, rendezvous], num_gpus=gpus, **_bundle(group, 1 + rank))
        for rank, name in enumerate(names)
    ]


def _bundle(group: PlacementGroup, index: int) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}
