"""The exporter serves recorded and read values on one address, under the names of the table only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import prometheus_client
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from common.errors import ConfigError
from common.roles import HUB, LEARNER, SAMPLER, SERIAL
from deploy.observability.definitions import TABLE
from deploy.observability.exporter import GaugeSample, ProcessMetrics, exported_by, exporting, own_address

LOOPBACK = "127.0.0.1"
Samples = dict[tuple[str, ...], float]


def scrape(address: str) -> Samples:
    """(name, label values in the order of their labels' names) -> value."""
    connection = HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        families = text_string_to_metric_families(answer.read().decode())
    finally:
        connection.close()
    samples = [sample for family in families for sample in family.samples]
    return {(one.name, *(one.labels[label] for label in sorted(one.labels))): one.value for one in samples}


def test_recorded_values_are_served() -> None:
    metrics = ProcessMetrics(HUB)
    metrics.add("douga_steps_total")
    metrics.add("douga_busy_seconds_total", 2.5, role="sampler")
    metrics.observe("douga_score_seconds", 0.2)
    metrics.observe("douga_reward_score", 100.0, dimension="motion")
    metrics.read(lambda: [GaugeSample("douga_queue_items", 3, {"state": "ready"}), GaugeSample("douga_step", 7)])
    with exporting(metrics, LOOPBACK) as address:
        found = scrape(address)
    assert found["douga_steps_total",] == 1
    assert found["douga_busy_seconds_total", "sampler"] == 2.5
    assert found["douga_busy_seconds_total", "learner"] == 0  # exported before its first increment
    assert found["douga_score_seconds_bucket", "0.1"] == 0
    assert found["douga_score_seconds_bucket", "0.3"] == found["douga_score_seconds_count",] == 1
    assert found["douga_score_seconds_sum",] == 0.2
    assert found["douga_reward_score_bucket", "motion", "95.0"] == 0
    assert found["douga_reward_score_bucket", "motion", "100.0"] == 1
    assert found["douga_queue_items", "ready"] == 3
    assert found["douga_step",] == 7
    assert found["process_resident_memory_bytes",] > 1e6
    assert not [name for name, *_ in found if name.endswith("_created")]


def test_counters_raised_by_a_reader_are_in_the_same_scrape() -> None:
    metrics = ProcessMetrics(HUB)

    def reader() -> Iterator[GaugeSample]:
        metrics.add("douga_queue_admitted_total", 4)
        yield GaugeSample("douga_step", 1)

    metrics.read(reader)
    with exporting(metrics, LOOPBACK) as address:
        assert [scrape(address)["douga_queue_admitted_total",] for _ in range(2)] == [4, 8]


def test_names_and_labels_are_those_of_the_table() -> None:
    learner = ProcessMetrics(LEARNER)
    with pytest.raises(KeyError):
        learner.add("douga_no_such_total")
    with pytest.raises(KeyError):
        learner.add("douga_steps_total")  # only the hub exports it
    with pytest.raises(ValueError, match="label"):
        learner.observe("douga_weight_push_seconds", 1.0, stage="write")
    learner.read(lambda: [GaugeSample("douga_step", 1)])
    with pytest.raises(KeyError):
        list(learner.collect())


def test_every_process_exports_what_the_table_says_of_it() -> None:
    assert {metric.name for metric in exported_by(SERIAL)} == set(TABLE)
    assert "douga_policy_version" in {metric.name for metric in exported_by(SAMPLER)}
    assert "douga_step" not in {metric.name for metric in exported_by(SAMPLER)}


def test_processes_on_one_machine_have_separate_counters() -> None:
    one, other = ProcessMetrics(LEARNER), ProcessMetrics(LEARNER)
    one.add("douga_idle_seconds_total", 3.0, role="learner")
    assert other.registry.get_sample_value("douga_idle_seconds_total", {"role": "learner"}) is None
    names = {metric.name for metric in prometheus_client.REGISTRY.collect()}
    assert not [name for name in names if name.startswith("douga")]


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "*", "localhost", "eth0"])
def test_it_listens_at_one_address(host: str) -> None:
    with pytest.raises(ConfigError, match="one IP address of this machine"), exporting(ProcessMetrics(SAMPLER), host):
        pass


def test_an_address_of_another_machine_is_named() -> None:
    with (
        pytest.raises(ConfigError, match=r"metrics: cannot listen at 192\.0\.2\.1: "),
        exporting(ProcessMetrics(SAMPLER), "192.0.2.1"),
    ):
        pass


def test_a_fixed_port_is_the_first_that_is_tried() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, ExitStack() as stack:
        first = taken.getsockname()[1]
        addresses = [stack.enter_context(exporting(ProcessMetrics(SAMPLER), LOOPBACK, first)) for _ in range(2)]
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        assert first < ports[0] < ports[1] < first + 100
        assert all(map(scrape, addresses))


def test_at_its_end_the_port_is_free() -> None:
    with exporting(ProcessMetrics(SAMPLER), LOOPBACK) as address:
        port = int(address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port), timeout=10)


def test_the_own_address_toward_a_loopback_service_is_loopback() -> None:
    assert own_address("tcp://127.0.0.1:4000") == LOOPBACK
    assert own_address("tcp://192.0.2.1:4000") not in ("0.0.0.0", "192.0.2.1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_is_shown_once_there_is_some() -> None:
    held = torch.zeros(1 << 20, device="cuda:0")
    with exporting(ProcessMetrics(SAMPLER), LOOPBACK) as address:
        found = scrape(address)
    assert found["douga_gpu_memory_allocated_bytes", "0"] >= held.nbytes
    assert found["douga_gpu_memory_allocated_bytes", "0"] <= found["douga_gpu_memory_reserved_bytes", "0"]
    assert found["douga_gpu_memory_reserved_bytes", "0"] < found["douga_gpu_memory_total_bytes", "0"]
