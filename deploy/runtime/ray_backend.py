"""What a cluster run asks of Ray: to be connected, room on a node, processes. `deploy/runtime/driver.py` runs it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from common.config import ClusterConfig, RunConfig
from common.errors import ConfigError

SHARE = 0.001  # of a node's custom resource that a worker takes: the resource is a label, not a quantity
OBJECT_STORE = 200_000_000  # bytes; nothing large goes through Ray
# Nobody looks at the tasks of a run's own Ray: in weeks, records of them would fill its memory, and its logs the disk.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_ROTATION_MAX_BYTES": "10000000",
    "RAY_ROTATION_BACKUP_COUNT": "1",
}


@contextmanager
def connected(config: ClusterConfig) -> Iterator[bool]:
    """Connected to the Ray that is asked for. True if it was started for this run: then it ends with it."""
    if ray.is_initialized():
        yield False
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in the place of ours
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"cluster.address = {address!r}: no Ray can be reached there: {line:.300}") from None
    try:
        yield address == "local"
    finally:
        ray.shutdown()


@contextmanager
def placed(config: RunConfig) -> Iterator[PlacementGroup]:
    """Room for the hub and the learner's ranks on one node. `ConfigError` names what was not to be had in time."""
    cluster = config.cluster
    asked = bundles(cluster)
    group = placement_group(asked, strategy="STRICT_PACK")
    try:
        if not group.wait(cluster.placement_seconds):
            raise ConfigError(
                f"no node with {asked} within cluster.placement_seconds = {cluster.placement_seconds:g} s; "
                f"Ray has {ray.cluster_resources()}, of which are free {ray.available_resources()}"
            )
        yield group
    finally:
        remove_placement_group(group)


def bundles(cluster: ClusterConfig) -> list[dict[str, float]]:
    """What hub and learner ask of one node, in Ray's resources: the hub's share, then one of each rank."""
    node = pin(cluster.learner.node)
    rank = {"CPU": 0.001, "GPU": cluster.learner.gpus} | node
    return [{"CPU": 0.001} | node, *([{name: n for name, n in rank.items() if n}] * cluster.learner.count)]


def pin(resource: str) -> dict[str, float]:
    """What to ask for to be on a node that has `resource`, a custom one of Ray's; empty: any node."""
    return {resource: SHARE} if resource else {}


def ray_exporters() -> list[str]:
    """``HOST:PORT`` of every living node's exporter of Ray's own metrics."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in alive]


class Process:
    """The actor that all processes of a run are: one object, made where Ray placed it. Its imports happen there.

    `run` is called in one thread, the rest in others.
    """

    def __init__(self, kind: str, home: str, *arguments: Any) -> None:
        """`kind` is ``module:Class``; relative paths start at `home`, the driver's working directory."""
        if Path(home).is_dir():
            os.chdir(home)
        module, name = kind.split(":")
        self._object = getattr(import_module(module), name)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of the object."""
        return getattr(self._object, method)(*arguments)

    def host(self) -> str:
        """The address of this node."""
        return ray.util.get_node_ip_address()

    def place(self) -> str:
        """Node, process and GPUs, in words."""
        context = ray.get_runtime_context()
        gpus = ", ".join(context.get_accelerator_ids().get("GPU", []))
        place = f"node {context.get_node_id()[:8]} ({self.host()}), process {os.getpid()}"
        return f"{place}, GPU {gpus}" if gpus else place


def launch(kind: str, arguments: Sequence[Any], **options: Any) -> Any:
    """A `Process` of that kind; it is there when it answers. `options` are Ray's, of the actor."""
    actor: Any = ray.remote(Process)
    return actor.options(num_cpus=0, max_concurrency=4, **options).remote(kind, str(Path.cwd()), *arguments)
