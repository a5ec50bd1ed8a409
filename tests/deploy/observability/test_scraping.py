"""Cluster runs scraped while they run: which processes are targets, and what hub and workers export."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.roles import HUB, LEARNER, REWARDER, SAMPLER
from common.rpc.curve import is_loopback
from deploy.observability.definitions import TABLE
from deploy.observability.exporter import exported_by
from deploy.runtime import driver
from deploy.runtime.hub import Hub
from deploy.runtime.messages import RENDEZVOUS_PREFIX, HubReady
from deploy.runtime.workers.learner import LearnerWorker
from deploy.runtime.workers.rewarder import RewarderWorker
from deploy.runtime.workers.sampler import SamplerWorker
from tests.deploy.observability.test_exporter import Samples, scrape
from tests.deploy.runtime.test_driver import Lines
from tests.deploy.runtime.test_external_workers import external_worker, served
from tests.deploy.runtime.test_hub import at_work
from tests.deploy.runtime.test_run_metrics import metrics_of_other_algorithms, names
from tests.runs.test_simulate import config
from tests.support.toy import wait_until

pytestmark = pytest.mark.timeout(240)


def listed(made: RunConfig) -> dict[str, str]:
    """Worker -> address of its exporter, as Prometheus reads it now."""
    found = json.loads((made.folder / "prometheus" / "targets.json").read_text())
    assert all(one["labels"]["run"] == made.name for one in found)
    return {one["labels"]["worker"]: one["targets"][0] for one in found}


def test_the_hub_and_its_workers_export_what_the_table_says_of_them(tmp_path: Path) -> None:
    made = config(tmp_path, steps=4000, **{"cluster.sampler.count": 1, "simulation.sample_seconds": 0.01})
    middle = Hub(made)
    opened = middle.open()
    assert isinstance(opened, HubReady)
    workers = [LearnerWorker(made, "learner-0", 0, RENDEZVOUS_PREFIX), SamplerWorker(made, "sampler-0")]
    found: dict[str, Samples] = {}
    try:
        with at_work([*workers, RewarderWorker(made, "rewarder-0")], opened):
            wait_until(lambda: len(listed(made)) == 4)
            wait_until(lambda: scrape(listed(made)["hub"])["douga_steps_total",] > 3)
            wait_until(lambda: ("douga_weight_push_seconds_count", "stage") in scrape(listed(made)["sampler-0"]))
            found = {worker: scrape(address) for worker, address in listed(made).items()}
        assert set(listed(made)) >= {"hub"}
    finally:
        middle.close()
    assert listed(made) == {}
    for worker, kind in (("hub", HUB), ("learner-0", LEARNER), ("sampler-0", SAMPLER), ("rewarder-0", REWARDER)):
        ours = {name for name in names(found[worker]) if name.startswith("douga_")}
        assert ours <= {metric.name for metric in exported_by(kind)}
        missing = {metric.name for metric in exported_by(kind)} - ours
        missing -= metrics_of_other_algorithms(made)
        assert not {name for name in missing if not name.startswith(("douga_gpu_", "douga_probe_"))}
    assert found["sampler-0"]["douga_policy_version", "sampler"] > 0
    assert found["sampler-0"]["douga_weight_push_bytes_total", "transfer"] > 1000
    assert found["learner-0"]["douga_weight_push_seconds_count", "gather"] > 3
    assert found["rewarder-0"]["douga_idle_seconds_total", "rewarder"] > 0
    assert found["hub"]["douga_workers_up", "sampler"] == found["hub"]["douga_workers_configured", "sampler"] == 1
    expected = {name for name in TABLE if not name.startswith(("douga_gpu_", "douga_probe_"))}
    assert {name for one in found.values() for name in names(one)} >= expected - metrics_of_other_algorithms(made)


def test_external_workers_are_targets_while_they_are_connected(tmp_path: Path) -> None:
    made = config(tmp_path, steps=4000, **{"simulation.sample_seconds": 0.01})
    with served(made) as run, external_worker(run.invitation, "sampler") as first:
        wait_until(lambda: "sampler-2" in listed(made))
        assert scrape(listed(made)["hub"])["douga_workers_up", "sampler"] == 1
        wait_until(lambda: ("douga_policy_version", "sampler") in scrape(listed(made)["sampler-2"]))
        with external_worker(run.invitation, "sampler", "--metrics.enabled", "false"):
            wait_until(lambda: run.hub.status().samplers == 2)
            assert listed(made).keys() == {"hub", "learner-0", "sampler-2"}
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 0
        assert listed(made).keys() == {"hub", "learner-0"}


class Watcher(Lines):
    """A `Progress` that records the targets at every status update, and kills a sampler once."""

    def __init__(self, made: RunConfig) -> None:
        super().__init__()
        self.made, self.seen, self.ray = made, [], []
        self.killed = ""  # address of the killed sampler
        self.asked = False

    def stop(self) -> bool:
        """For `driver.run`: stops once everything was observed."""
        with suppress(FileNotFoundError):
            self.observe(listed(self.made))
        return self.asked

    def observe(self, there: dict[str, str]) -> None:
        if there not in self.seen:
            self.seen.append(there)
        if not self.killed and {"sampler-0", "sampler-1", "rewarder-0", "learner-0"} <= there.keys():
            assert scrape(there["sampler-0"])["process_start_time_seconds",] > 0
            self.killed = there["sampler-0"]
            os.kill(int(self.place("sampler-0")["process"]), signal.SIGKILL)
        elif self.killed and there.get("sampler-0", self.killed) != self.killed:
            self.hub = scrape(there["hub"])
            with suppress(FileNotFoundError):
                self.ray = json.loads((self.made.folder / "prometheus" / "ray.json").read_text())
            self.asked = True


def test_a_killed_sampler_is_removed_and_listed_again_after_its_restart(tmp_path: Path) -> None:
    made: Any = config(
        *(tmp_path,), steps=100_000, mode="cluster", **{"simulation.sample_seconds": 0.05, "cluster.restart_seconds": 1}
    )
    watcher = Watcher(made)
    assert not driver.run(made, stop=watcher.stop, progress=watcher).finished
    without = [there for there in watcher.seen if there.keys() >= {"hub", "sampler-1"} and "sampler-0" not in there]
    after = watcher.seen.index(next(there for there in watcher.seen if there.get("sampler-0") == watcher.killed))
    assert any(watcher.seen.index(there) > after for there in without)
    assert all(is_loopback(address.split(":")[0]) for there in watcher.seen for address in there.values())
    assert watcher.hub["douga_worker_crashes_total", "sampler"] == 1
    assert watcher.hub["douga_workers_up", "sampler"] == 2
    assert [one["labels"] for one in watcher.ray] == [{"run": made.name, "process": "ray"}]
    assert listed(made) == {}
