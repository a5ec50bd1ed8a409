"""The hub in this process, with simulated workers on threads: the files it removes, and when a run counts as stuck."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from common.errors import ConfigError
from deploy.runtime import cluster_run_loop
from deploy.runtime.cluster_run_loop import RefusalWatch
from deploy.runtime.evaluation import StuckError
from deploy.runtime.hub import Hub
from deploy.runtime.messages import RENDEZVOUS_PREFIX, HubReady
from deploy.runtime.workers.base import Worker
from deploy.runtime.workers.learner import LearnerWorker
from deploy.runtime.workers.rewarder import RewarderWorker
from deploy.runtime.workers.sampler import SamplerWorker
from tests.runs.test_simulate import config


@contextmanager
def at_work(workers: Sequence[Worker], opened: HubReady) -> Iterator[None]:
    """All workers on threads; they are stopped and joined at the end."""
    threads = [threading.Thread(target=worker.run, args=(opened.addresses,)) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def test_a_max_bytes_too_small_for_a_step_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_run_loop, "FULL_SECONDS", 0.3)
    made = config(tmp_path, **{"exchange.max_bytes": 1_000_000, "simulation.latents_bytes": 300_000})
    workers = [LearnerWorker(made, "learner-0", 0, RENDEZVOUS_PREFIX), SamplerWorker(made, "sampler-0")]
    middle = Hub(made)
    opened = middle.open()
    assert isinstance(opened, HubReady)
    message = (
        r"^step 0: the learner needs 2 pairs and has 1, .* admission \(exchange\.max_bytes = 1000000: the blobs use"
    )
    try:
        with at_work([*workers, RewarderWorker(made, "rewarder-0")], opened), pytest.raises(StuckError, match=message):
            middle.run()
    finally:
        middle.close()


@pytest.mark.parametrize("taken", range(4))
def test_a_port_in_use_is_named_with_its_key(taken: int, tmp_path: Path) -> None:
    with ExitStack() as others:
        first = four_ports(others, taken)
        middle = Hub(config(tmp_path, **{"cluster.port": first}))
        with pytest.raises(ConfigError, match=rf"^cluster\.port = {first}: .*127\.0\.0\.1:{first + taken}: Addr"):
            middle.open()


def four_ports(others: ExitStack, taken: int) -> int:
    """The first of four ports of which only number `taken` is in use."""
    while True:
        server = others.enter_context(socket.create_server(("127.0.0.1", 0)))
        first = server.getsockname()[1] - taken
        free = [first + number for number in range(4) if number != taken]
        if all(is_free(port) for port in free):
            return first


def is_free(port: int) -> bool:
    with socket.socket() as own:
        try:
            own.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_a_run_works_over_ipv6(tmp_path: Path) -> None:
    made = config(tmp_path, **{"cluster.keys": "always"})
    workers = [LearnerWorker(made, "learner-0", 0, RENDEZVOUS_PREFIX), SamplerWorker(made, "sampler-0")]
    middle = Hub(made)
    opened = middle.open("::1")
    assert isinstance(opened, HubReady)
    assert opened.addresses.exchange.startswith("tcp://[::1]:")
    try:
        with at_work([*workers, RewarderWorker(made, "rewarder-0")], opened):
            assert middle.run().step == made.steps
    finally:
        middle.close()


def test_rendezvous_files_are_removed(tmp_path: Path) -> None:
    made = config(tmp_path)
    made.folder.mkdir(parents=True)
    (made.folder / f"{RENDEZVOUS_PREFIX}of-a-hub-that-was-killed").touch()
    middle = Hub(made)
    assert isinstance(middle.open(), HubReady)
    try:
        assert not list(made.folder.glob(f"{RENDEZVOUS_PREFIX}*"))
        (made.folder / f"{RENDEZVOUS_PREFIX}of-this-one").touch()
    finally:
        middle.close()
    assert not list(made.folder.glob(f"{RENDEZVOUS_PREFIX}*"))


def test_long_refusals_of_admission_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    watch = RefusalWatch()
    refused = "exchange.max_lag = 1"
    with caplog.at_level("WARNING"):
        for now, refusal, admitted in (
            (0, refused, 4), (59, refused, 4), (60, refused, 4), (100, refused, 4), (121, refused, 4),
            (200, "", 4), (259, refused, 4), (300, refused, 5), (359, refused, 5), (360, refused, 5),
        ):  # fmt: skip
            watch.observe(refusal, admitted, float(now))
    assert [record.getMessage() for record in caplog.records] == [
        f"no group was admitted for {seconds} s: {refused}" for seconds in (60, 121, 60)
    ]
