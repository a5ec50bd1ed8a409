"""Exports the metrics of one process to Prometheus: a private registry and an HTTP server on one address.

```
work ── add, observe ──> ProcessMetrics <── GET /metrics ── Prometheus
state <───── readers ─────────────┘         called at every scrape; they read existing state
```
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from deploy.observability.definitions import COUNTER, GAUGE, TABLE, Metric, algorithm_metric
from learner.algorithms.base import MetricSpec

PORTS = 100  # ports tried, starting at `metrics.port`: a node may run many processes of a run


class GaugeSample(NamedTuple):
    """One sample of a gauge."""

    name: str
    value: float
    labels: Mapping[str, str] = MappingProxyType({})


Reader = Callable[[], Iterable[GaugeSample]]


def exported_by(process: str) -> list[Metric]:
    """Returns the metrics of `TABLE` that a process of this kind exports."""
    return [metric for metric in TABLE.values() if process == SERIAL or process in metric.by]


class ProcessMetrics(Collector):
    """The metrics of one process: a `Meters` for events, `readers` for gauges. Thread-safe.

    Raises `KeyError` or `ValueError` for a metric or label that `TABLE` does not define for this kind of process.
    """

    def __init__(self, process: str, algorithm: Sequence[MetricSpec] = ()) -> None:
        """`algorithm`: metrics that the run's algorithm declares; those of custom algorithms are not in `TABLE`."""
        self.process, self.registry = process, prometheus.CollectorRegistry()
        own = [algorithm_metric(spec) for spec in algorithm]
        self._gauges = {metric.name: metric for metric in (*exported_by(process), *own) if metric.kind == GAUGE}
        self._readers: list[Reader] = [gpu_memory]
        self.registry.register(self)  # before the counters, so that the same scrape shows what a reader adds to them
        prometheus.ProcessCollector(registry=self.registry)
        prometheus.disable_created_metrics()  # one more series per counter, redundant with process_start_time_seconds
        self._made = {metric.name: self._make(metric) for metric in exported_by(process) if metric.kind != GAUGE}

    def _make(self, metric: Metric) -> Any:
        """Creates the metric. Counters start at 0 for all known labels, else `increase` misses the first increment."""
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
        """Calls `reader` at every scrape, in a thread of the server."""
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
        """Yields the gauges; called by the registry at every scrape."""
        found: dict[str, GaugeMetricFamily] = {}
        for name, value, labels in (value for reader in self._readers for value in reader()):
            metric = self._gauges[name]
            family = found.setdefault(name, GaugeMetricFamily(name, metric.help, labels=tuple(metric.labels)))
            family.add_metric([labels[label] for label in metric.labels], value)
        yield from found.values()


def gpu_memory() -> Iterator[GaugeSample]:
    """Yields the memory of the GPUs that this process uses, in bytes. Neither imports torch nor initializes CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not getattr(cuda, "is_initialized", bool)():
        return
    for index in range(cuda.device_count()):
        reserved, device = cuda.memory_reserved(index), {"device": str(index)}
        if reserved:
            yield GaugeSample("douga_gpu_memory_reserved_bytes", reserved, device)
            yield GaugeSample("douga_gpu_memory_allocated_bytes", cuda.memory_allocated(index), device)
            yield GaugeSample("douga_gpu_memory_total_bytes", cuda.get_device_properties(index).total_memory, device)


@contextmanager
def exporting(metrics: ProcessMetrics, host: str, port: int = 0) -> Iterator[str]:
    """Serves the metrics at ``/metrics`` inside the block. Yields ``HOST:PORT``.

    Uses the first free port starting at `port`; 0 lets the system choose. Raises `ConfigError` if `host` is not a
    single IP address of this machine, or no port is free.
    """
    if not _is_one(host):
        raise ConfigError(f"metrics: {host}: must be one IP address of this machine, no host name, not 0.0.0.0")
    server, thread = _serve(metrics.registry, host, port)
    try:
        yield f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_one(host: str) -> bool:
    """Whether `host` is an IP address other than the unspecified one (0.0.0.0, ::)."""
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
    raise ConfigError(f"metrics.port = {first}: this and the next {PORTS - 1} ports are in use on {host}")


def own_address(service: str) -> str:
    """Returns the local IP address that routes to the service at ``tcp://HOST:PORT``. Sends no packet."""
    place = urlsplit(service)
    family, kind, protocol, _, target = socket.getaddrinfo(place.hostname, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return probe.getsockname()[0]
