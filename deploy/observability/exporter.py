"""One process's metrics for Prometheus: a private registry and an HTTP server for it, at one address.

```
work ── add, observe ──> Instruments <── GET /metrics ── Prometheus
state <───── readers ────────┘             asked for with every scrape: they read what is known anyway
```
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import EADDRINUSE
from ipaddress import ip_address
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.errors import ConfigError
from common.roles import HUB, SERIAL
from deploy.observability.definitions import COUNTER, GAUGE, TABLE, Metric

PORTS = 100  # tried from a fixed one on: one node may have many processes of a run


class Value(NamedTuple):
    """What a gauge shows."""

    name: str
    value: float
    labels: Mapping[str, str] = MappingProxyType({})


Reader = Callable[[], Iterable[Value]]


def exported_by(process: str) -> list[Metric]:
    """The metrics of the table that a process of this kind exports."""
    return [metric for metric in TABLE.values() if process == SERIAL or process in metric.by]


class Instruments(Collector):
    """The metrics of one process: `Meters` for what happens, `readers` for how things stand. Thread-safe.

    A name or label that the table does not have, or has not for such a process, is a `KeyError` or `ValueError`.
    """

    def __init__(self, process: str) -> None:
        self.process, self.registry = process, prometheus.CollectorRegistry()
        self._gauges = {metric.name: metric for metric in exported_by(process) if metric.kind == GAUGE}
        self._readers: list[Reader] = [gpu_memory]
        self.registry.register(self)  # before the counters: what a reader adds is seen at once
        prometheus.ProcessCollector(registry=self.registry)
        prometheus.disable_created_metrics()  # a series more for each; the process's start says the same
        self._made = {metric.name: self._make(metric) for metric in exported_by(process) if metric.kind != GAUGE}

    def _make(self, metric: Metric) -> Any:
        """A counter begins at 0 with every label that is known before, or `increase` would not see its first."""
        how: dict[str, Any] = {"labelnames": tuple(metric.labels), "registry": self.registry}
        if metric.kind != COUNTER:
            return prometheus.Histogram(metric.name, metric.help, buckets=metric.buckets, **how)
        made = prometheus.Counter(metric.name, metric.help, **how)
        closed = [values for values in metric.labels.values() if not isinstance(values, str)]
        if metric.labels and len(closed) == len(metric.labels) and self.process in (HUB, SERIAL):
            for values in product(*closed):
                made.labels(*values)
        return made

    def read(self, reader: Reader) -> None:
        """Ask `reader` with every scrape. It runs in the threads of the server."""
        self._readers.append(reader)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """See `Meters`."""
        self._of(name, labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """See `Meters`."""
        self._of(name, labels).observe(value)

    def _of(self, name: str, labels: dict[str, str]) -> Any:
        made = self._made[name]
        return made.labels(**labels) if labels else made

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, as the registry asks for them."""
        found: dict[str, GaugeMetricFamily] = {}
        for name, value, labels in (value for reader in self._readers for value in reader()):
            metric = self._gauges[name]
            family = found.setdefault(name, GaugeMetricFamily(name, metric.help, labels=tuple(metric.labels)))
            family.add_metric([labels[label] for label in metric.labels], value)
        yield from found.values()


def gpu_memory() -> Iterator[Value]:
    """Of the GPUs that this process uses; it is not what imports torch or wakes a GPU."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not getattr(cuda, "is_initialized", bool)():
        return
    for index in range(cuda.device_count()):
        reserved, device = cuda.memory_reserved(index), {"device": str(index)}
        if reserved:
            yield Value("douga_gpu_memory_reserved_bytes", reserved, device)
            yield Value("douga_gpu_memory_allocated_bytes", cuda.memory_allocated(index), device)
            yield Value("douga_gpu_memory_total_bytes", cuda.get_device_properties(index).total_memory, device)


@contextmanager
def exporting(instruments: Instruments, host: str, port: int = 0) -> Iterator[str]:
    """``HOST:PORT`` where the metrics are served meanwhile, at ``/metrics``: with a `port` the first free one from it.

    `ConfigError` when `host` is not one IP address of this machine, or no port is to be had.
    """
    if not _is_one(host):
        raise ConfigError(f"metrics: {host}: not all interfaces and no name: one IP address of this machine")
    server, thread = _serve(instruments.registry, host, port)
    try:
        yield f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_one(host: str) -> bool:
    """Whether it is an IP address, and none that stands for all."""
    try:
        return not ip_address(host).is_unspecified
    except ValueError:
        return False


def _serve(registry: prometheus.CollectorRegistry, host: str, first: int) -> tuple[Any, Any]:
    for port in range(first, min(first + PORTS, 65536)) if first else (0,):
        try:
            return prometheus.start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise ConfigError(f"metrics: cannot listen at {host}: {error.strerror or error}") from None
    raise ConfigError(f"metrics.port = {first}: this and the {PORTS - 1} ports after it are taken on {host}")


def own_address(service: str) -> str:
    """This machine's address as seen from a service at ``tcp://HOST:PORT``: at loopback loopback. Nothing is sent."""
    place = urlsplit(service)
    family, kind, protocol, _, target = socket.getaddrinfo(place.hostname, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return probe.getsockname()[0]
