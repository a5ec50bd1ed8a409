"""Cluster runs on Ray: two nodes on this machine, real processes, real messages, a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from actors.prompts.source import open_prompts
from actors.sampler import Sampler
from common.candidate_set.folder import read_set
from common.config import RunConfig
from common.data.video import encode_mp4
from common.errors import ConfigError, RunFailed
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.remote import RemoteExchange
from common.messages import Purpose
from common.models.cogvideox import open_model
from common.roles import LEARNER
from common.rpc import client as rpc
from common.rpc.client import Unreachable
from common.rpc.codec import WireError
from common.rpc.curve import KEYS, WORKER, read_worker_key
from common.weights.store import WeightStore
from deploy.guardrails.rules import read_readings
from deploy.logs.forward import ForwardingHandler
from deploy.logs.process import logging_to
from deploy.machine.ray_address import check_ray
from deploy.run_dir import layout, timeline
from deploy.run_dir.jsonl import latest_by_step, read_json_lines
from deploy.runtime import driver, serial
from deploy.runtime.external_workers import RemoteRegistry
from deploy.runtime.hub import Hub
from deploy.runtime.messages import Outcome
from deploy.runtime.ray_backend import placed, restart_units
from deploy.runtime.restart_policy import RestartLimitError
from learner import checkpoint
from tests.deploy.guardrails.test_monitor import DriftingReward
from tests.deploy.runtime.inputs.test_offline_pairs import rate_clips
from tests.runs.test_simulate import config as simulated
from tests.support import toy
from tests.support.rewarders.survey import frames
from tests.support.tiny import TEXT_TO_VIDEO, tiny_pipeline

pytestmark = pytest.mark.timeout(240)
Run = tuple[RunConfig, "Lines", dict[str, Any]]
PLACES = {
    "cluster.sampler.count": 2,
    "cluster.learner.count": 2,
    "cluster.sampler.gpus": 1,
    "cluster.learner.gpus": 1,
    "cluster.rewarder.gpus": 0.5,
    "cluster.sampler.node": "H100",
    "cluster.rewarder.node": "H100",
    "cluster.learner.node": "A800",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A node for the learner and one for the samplers, with GPUs that exist only for Ray."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "resources": {"A800": 1}})
    made.add_node(num_cpus=2, num_gpus=4, resources={"H100": 1})
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


class Lines:
    """A `Progress` that records the lines."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.phases: list[str] = []

    def update(self, status: Any) -> None:
        if status.phase not in self.phases:
            self.phases.append(status.phase)

    def message(self, line: str) -> None:
        self.said.append(line)

    def place(self, worker: str) -> re.Match[str]:
        """The last reported node, process and GPU of a worker."""
        form = re.compile(rf"{worker}: node (?P<node>\w+) \(.*\), process (?P<process>\d+)(, GPU (?P<gpu>.*))?")
        return [found for line in self.said if (found := form.match(line))][-1]


def config(root: Path, model: Path, **flags: Any) -> RunConfig:
    values = {"mode": "cluster", "cluster.sampler.count": 1, "model.path": model}
    values |= {"exchange.max_lag": 1, "exchange.lease_seconds": 30}
    return toy.config(root, **(values | flags))


def reopened(made: RunConfig) -> LocalExchange:
    return LocalExchange(made.folder, made, open_prompts(made.prompts, made.seed))


@pytest.fixture(scope="module")
def asynchronous(
    nodes: Cluster, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Lines, dict]:
    """Twelve steps by two samplers, a rewarder and two learner ranks, watched by guardrails; all candidates kept."""
    watched = {"guardrails.prompts": 2, "guardrails.every_pushes": 4, "keep_candidates_bytes": 10**9}
    made = config(tmp_path_factory.mktemp("asynchronous"), model, **PLACES, **watched, steps=12)
    lines = Lines()
    outcome = driver.run(made, toy.rewards(), progress=lines)
    assert outcome.result is not None
    return made, lines, outcome.result


def test_roles_are_placed_on_the_configured_nodes(nodes: Cluster, asynchronous: Run) -> None:
    lines = asynchronous[1]
    places = {name: lines.place(name) for name in ("hub", "learner-0", "learner-1", "sampler-0", "sampler-1")}
    assert len({places[name]["node"] for name in ("hub", "learner-0", "learner-1")}) == 1
    assert places["sampler-0"]["node"] == places["sampler-1"]["node"] == lines.place("rewarder-0")["node"]
    assert places["sampler-0"]["node"] != places["hub"]["node"]
    assert {places["learner-0"]["gpu"], places["learner-1"]["gpu"]} == {"0", "1"}
    gpus = [places["sampler-0"]["gpu"], places["sampler-1"]["gpu"], lines.place("rewarder-0")["gpu"]]
    assert len(set(gpus)) == 3
    assert len({found["process"] for found in places.values()}) == 5


def test_the_run_folder_is_that_of_a_serial_run(asynchronous: Run) -> None:
    made, lines, result = asynchronous
    there = {path.name for path in made.folder.iterdir()}
    assert {"config.toml", "ledger.sqlite", "checkpoints", "weights", "clips", "result.json", "report.html"} <= there
    assert lines.phases == ["evaluating base", "training", "evaluating aligned"]
    assert [record["step"] for record in read_json_lines(made.folder / "metrics.jsonl")] == list(range(1, 13))
    assert result["step"] == 12
    exchange = reopened(made)
    exchange.check()
    counts = exchange.counts()
    assert counts[State.TRAINED] == 24
    assert sum(counts.values()) == 24 + counts[State.EXPIRED]  # every sampled group is trained
    assert exchange.counts(Purpose.EVAL)[State.DONE] == 4
    exchange.close()


def test_every_process_has_a_log(asynchronous: Run) -> None:
    made, lines, _ = asynchronous
    logged = {path.stem: path.read_text() for path in (made.folder / "logs").iterdir()}
    ranks = {"learner-0", "learner-1"}
    assert logged.keys() == ranks | {"driver", "hub", "rewarder-0", "sampler-0", "sampler-1"}
    for name, text in logged.items():
        assert f"INFO {name} deploy.logs.process: started: {name}, host " in text.splitlines()[0]
        assert name == "driver" or f", pid {lines.place(name)['process']}, " in text
        assert name == "driver" or text.endswith(f"{name} ended\n")
    assert "step 12: checkpoint saved" in logged["learner-0"]
    assert "step 3: reference refreshed with share 1 of the policy (algorithm)" in logged["learner-1"]
    assert "loaded, replacing version" in logged["sampler-0"]
    assert "guardrails, step 0: reading of version 0, 0 alarms" in logged["hub"]
    assert "hub: node " in logged["driver"]


def test_the_driver_writes_its_log_itself_after_the_last_hub_crash(model: Path, tmp_path: Path) -> None:
    made, logs = config(tmp_path, model), ForwardingHandler()
    file = made.folder / "logs" / "driver.log"
    with layout.claim(made), logging_to(logs, made, "driver"), pytest.raises(RestartLimitError):
        _give_up(logs, made)
    assert "ERROR driver deploy.runtime.driver: hub died 6 times\n" in file.read_text()
    assert logs.take() != []  # later records are not written


def _give_up(logs: ForwardingHandler, made: RunConfig) -> None:
    with driver._keeping_driver_log(logs, made):
        raise RestartLimitError("hub died 6 times")


def test_a_finished_run_is_not_started_again(asynchronous: Run) -> None:
    made, _, result = asynchronous
    assert Hub(made).open() == Outcome(12, result)


def test_sampling_and_learning_overlap(asynchronous: Run) -> None:
    folder = asynchronous[0].folder
    work = timeline.read(read_json_lines(folder / "timeline.jsonl"), read_json_lines(folder / "events.jsonl"))
    assert set(work.workers) >= {"sampler-0", "rewarder-0", "learner-0", "learner-1"}
    assert work.overlap("sampling", "learning") > 0
    report = (folder / "report.html").read_text()
    assert "<h2>Timeline</h2>" in report
    assert "learner-1: learning" in report


def test_the_lag_of_pairs_stays_within_max_lag(asynchronous: Run) -> None:
    steps = read_json_lines(asynchronous[0].folder / "metrics.jsonl")
    assert max(record["lag_max"] for record in steps) == 1  # max_lag
    assert sum(record["lag"] for record in steps) > 0


def test_guardrail_readings_in_a_cluster_run(asynchronous: Run) -> None:
    made = asynchronous[0]
    readings = read_readings(made.folder)
    assert readings[0].step == 0
    assert readings[-1].step > 0
    assert all(sorted(one.policy) == sorted(one.base) == [0, 1] for one in readings)
    assert all(one.base == readings[0].base for one in readings)  # the same clips, scored again
    assert all(one.policy != readings[0].policy for one in readings[1:])
    exchange = reopened(made)
    counts = exchange.counts(Purpose.PROBE)
    assert counts[State.PENDING] == counts[State.SAMPLING] == counts[State.SCORING] == 0
    exchange.close()


def test_an_alarm_saves_and_pauses_the_run(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    """The scorer drifts: the scores of the same base clips rise with every batch."""
    watched = {"guardrails.prompts": 2, "guardrails.every_pushes": 1, "guardrails.patience": 1}
    watched |= {"guardrails.action": "pause"}
    made = config(tmp_path, model, steps=30, **watched)
    with pytest.raises(
        RunFailed, match=r"^paused by guardrails\.action after step \d+: scorer: .*; checkpoint saved; resume with"
    ):
        driver.run(made, toy.rewards(DriftingReward))
    (alarm,) = [one for one in read_json_lines(made.folder / "events.jsonl") if one["event"] == "alarm"]
    assert (alarm["rule"], alarm["action"]) == ("scorer", "pause")
    assert alarm["step"] < 30
    reached = max(one["step"] for one in read_json_lines(made.folder / "metrics.jsonl"))
    assert (made.folder / "checkpoints" / f"step-{reached:06d}").is_dir()


def test_a_clip_is_reproducible_from_version_and_seed(asynchronous: Run) -> None:
    made, _, result = asynchronous
    exchange = reopened(made)
    sampler = Sampler(open_model(made.model.path), made)
    sampler.load(*WeightStore(made.folder / "weights").load(result["version"]))
    assert sampler.version == result["version"]
    for one in exchange.results(Purpose.EVAL, result["version"]):
        (again,) = sampler.sample(one.prompt, sampler.encode(one.prompt), [one.candidate.seed], [0])
        assert again.latents == one.candidate.latents
        assert again.clip == one.candidate.clip
    exchange.close()


def check_kept(made: RunConfig) -> None:
    """Every scored training group of a finished run is in its set once, whole, and waits no more."""
    exchange, kept = reopened(made), read_set(made.folder / "kept")
    exchange.check()
    counts = exchange.counts()
    assert list(exchange.collected()) == []
    exchange.close()
    groups = sum(counts[state] for state in (State.READY, State.TRAINED, State.EXPIRED, State.TIED))
    assert len({row.ordinal for row in kept.rows.values()}) == groups >= made.steps * made.learner.batch_size
    assert len(kept.rows) == groups * made.sampler.candidates
    assert len((made.folder / "kept" / "candidates.jsonl").read_text().splitlines()) == len(kept.rows)
    assert list(kept.faults()) == []


def test_a_cluster_run_keeps_the_candidates_of_all_training_groups(asynchronous: Run) -> None:
    made, _, _ = asynchronous
    check_kept(made)
    rows = read_set(made.folder / "kept").rows.values()
    store = WeightStore(made.folder / "weights")
    newest = [row for row in rows if row.version == max(row.version for row in rows)]
    assert {row.weights for row in newest} == {store.manifest(newest[0].version).digest}


class At(Lines):
    """A `Lines` that calls functions once each, when a step is reached: ``{step: function}``."""

    def __init__(self, what: dict[int, Callable[[], object]]) -> None:
        super().__init__()
        self.what = what

    def update(self, status: Any) -> None:
        super().update(status)
        for step in [step for step in self.what if status.phase == "training" and status.done >= step]:
            self.what.pop(step)()

    def kill(self, worker: str) -> None:
        """Sends SIGKILL to the current process of a worker."""
        os.kill(int(self.place(worker)["process"]), signal.SIGKILL)

    def up(self, role: str) -> list[str]:
        """The workers of a role that have started so far."""
        return sorted({line.split(":")[0] for line in self.said if line.startswith(role) and ": node " in line})

    def is_on(self, worker: str, node: Any) -> bool:
        """Whether a worker is on a node of the cluster."""
        return node.node_id.startswith(self.place(worker)["node"])

    @property
    def died(self) -> list[str]:
        """The workers whose crashes were reported, in order."""
        return [line.split(" died (")[0] for line in self.said if " died (" in line]


@pytest.mark.slow  # `tests/benchmarks/stress/test_chaos.py` tests this too
def test_without_lag_a_stopped_cluster_run_equals_the_serial_run(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each worker: the number of threads changes the order of sums
    try:
        alone = serial.run(toy.config(tmp_path / "serial", steps=8, **{"model.path": model}), toy.rewards()).result
    finally:
        torch.set_num_threads(threads)
    assert alone is not None
    made = config(tmp_path / "cluster", model, steps=8, **{"exchange.max_lag": 0, "cluster.sampler.count": 2})
    asked: list[bool] = []
    stopped = driver.run(made, toy.rewards(), stop=lambda: bool(asked), progress=At({2: lambda: asked.append(True)}))
    assert not stopped.finished
    together = driver.run(made, toy.rewards()).result
    assert together is not None
    assert [record["event"] for record in read_json_lines(made.folder / "events.jsonl")][:4] == [
        *("started", "evaluated", "interrupted", "resumed")
    ]
    steps = [
        [(record["step"], record["reward"], record["lag"]) for record in latest_by_step(read_json_lines(folder))]
        for folder in (tmp_path / "serial/runs/toy/metrics.jsonl", made.folder / "metrics.jsonl")
    ]
    assert steps[0] == steps[1]  # the same pairs in the same order
    assert alone["weights_digest"] == together["weights_digest"]
    assert [one["aligned"]["learned"] for one in alone["by_prompt"]] == [
        one["aligned"]["learned"] for one in together["by_prompt"]
    ]


@pytest.mark.slow  # `tests/benchmarks/stress/test_chaos.py` kills the same roles in the default test run
def test_a_run_survives_crashes_of_a_sampler_a_node_and_a_learner(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    second = nodes.add_node(num_cpus=2, num_gpus=2, resources={"H100": 1})
    flags = PLACES | {"cluster.sampler.count": 3, "learner.checkpoint_every": 8}
    made = config(tmp_path, model, **flags, steps=16)
    lines = At({})
    lines.what |= {
        2: lambda: lines.kill(next(name for name in lines.up("sampler") if not lines.is_on(name, second))),
        5: lambda: nodes.remove_node(second, allow_graceful=False),
        9: lambda: lines.kill("learner-1"),
    }
    assert driver.run(made, toy.rewards(), progress=lines).finished
    assert "learner" in lines.died
    others = [name for name in lines.died if name != "learner"]
    assert len(others) > 1  # the sampler, and the workers on the second node
    steps = [record["step"] for record in read_json_lines(made.folder / "metrics.jsonl")]
    assert sorted(set(steps)) == list(range(1, 17))
    assert len(steps) > 16  # at least step 9 was repeated, from the checkpoint of step 8
    exchange = reopened(made)
    exchange.check()
    assert exchange.counts()[State.TRAINED] == 32  # each use acts on the weights once
    assert exchange.counts()[State.FAILED] == 0
    exchange.close()


def test_offline_pairs_train_the_weights_of_a_serial_run(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    rate_clips(tmp_path / "clips")
    (tmp_path / "clips" / "short.mp4").write_bytes(encode_mp4(frames(9, 3), 8))
    (tmp_path / "clips" / "short.txt").write_text("robot runs")
    found = {}
    for pairs, loss in (("ratings.jsonl", "dpo"), ("", "sft")):
        flags = {"pairs": tmp_path / "clips" / pairs, "algorithm.name": loss, "exchange.max_lag": 0, "learner.lr": 1e-2}
        flags |= {"learner.train": "lora", "cluster.sampler.count": 2, "name": loss}
        flags |= {} if pairs else {"sampler.candidates": 1}
        threads, lines = torch.get_num_threads(), Lines()
        torch.set_num_threads(1)  # as in each worker
        try:
            alone = serial.run(toy.config(tmp_path / "serial", **{"model.path": model}, **flags), toy.rewards()).result
        finally:
            torch.set_num_threads(threads)
        together = driver.run(config(tmp_path / "cluster", model, **flags), toy.rewards(), progress=lines).result
        assert alone is not None
        assert together is not None
        assert together["weights_digest"] == alone["weights_digest"]
        found[loss] = together["weights_digest"]
        assert any("short.mp4: 3 frames" in line and "left out" in line for line in lines.said) == (loss == "sft")
    assert len(set(found.values())) == 2


@pytest.mark.slow  # `tests/benchmarks/stress/test_chaos.py` kills the same roles in the default test run
def test_after_a_hub_crash_all_processes_restart_from_the_folder(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    made = config(tmp_path, model, steps=8, keep_candidates_bytes=10**9)
    lines = At({})
    lines.what[3] = lambda: lines.kill("hub")
    assert driver.run(made, toy.rewards(), progress=lines).finished
    assert any("all workers restart" in line for line in lines.said)
    exchange = reopened(made)
    exchange.check()
    assert exchange.counts()[State.TRAINED] == 16
    exchange.close()
    check_kept(made)


def test_with_keys_only_clients_with_a_key_are_served(
    nodes: Cluster, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over CURVE. Meanwhile every port of the hub is tried without the key, and one with it."""
    monkeypatch.setattr(rpc, "ATTEMPTS", 1)
    made = config(tmp_path, model, steps=6, **{"cluster.keys": "always"})
    lines, served = At({}), dict.fromkeys(("keyless", "keyed"), 0)

    def knock() -> None:
        hub = psutil.Process(int(lines.place("hub")["process"]))
        doors = [one.laddr for one in hub.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN]
        with ThreadPoolExecutor(len(doors)) as pool:
            served["keyless"] = sum(pool.map(answers, doors))
        address = next(found[1] for line in lines.said if (found := re.search(r"--connect (\S+)", line)))
        key = read_worker_key(made.folder / KEYS / WORKER)
        with RemoteRegistry.at(address, "tester", key, timeout=60) as registry:
            served["keyed"] = bool(registry.configuration())

    lines.what[1] = knock
    assert driver.run(made, toy.rewards(), progress=lines).finished
    assert served == {"keyless": 0, "keyed": True}


def answers(door: Any) -> bool:
    """Whether an exchange at this address answers a client without a key."""
    host = "127.0.0.1" if door.ip in ("0.0.0.0", "::") else door.ip  # Ray's own ports
    with (
        suppress(Unreachable, ConfigError, WireError),
        RemoteExchange(f"tcp://{host}:{door.port}", "tester", timeout=2) as exchange,
    ):
        return exchange.next_version() >= 0
    return False


@pytest.mark.slow
def test_text_to_video_models_use_the_same_loop(nodes: Cluster, tmp_path: Path) -> None:
    model = tiny_pipeline(tmp_path / "model", **TEXT_TO_VIDEO)
    rows = [{"prompt": f"a robot walks {place}", "split": "train" if place % 2 else "heldout"} for place in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = {"prompts": tmp_path / "prompts.jsonl", "learner.caption_drop": 0.5, "sampler.guidance": 6}
    crowded = {"cluster.sampler.count": 2, "cluster.sampler.gpus": 4, "cluster.sampler.node": "H100"}
    made = config(tmp_path, model, **flags, **crowded, **{"cluster.placement_seconds": 3, "cluster.grows": True})
    lines = Lines()
    result = driver.run(made, toy.rewards(), progress=lines).result
    # The node has 4 GPUs, and two samplers request 4 each.
    assert sum(" is waiting for resources; " in line for line in lines.said) == 1
    assert result is not None
    assert result["oracle"] == {}
    assert [record["text"][:13] for record in result["by_prompt"]] == ["a robot walks"] * 2


def test_bad_input_that_only_a_worker_sees_ends_the_run(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward\.weights\.character = 1\.0: no reward head scores"):
        driver.run(config(tmp_path, model), toy.rewards()[:5])


def test_bad_input_is_found_before_a_folder_is_created(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv"):
        Hub(config(tmp_path, model, prompts=tmp_path / "none.csv")).open()
    assert not (tmp_path / "runs").exists()


def test_a_ray_that_runs_is_found_at_its_address(nodes: Cluster) -> None:
    check_ray("cluster.address", nodes.address)


def test_a_port_of_ray_that_is_not_its_heads_is_refused(nodes: Cluster) -> None:
    port = nodes.head_node.node_manager_port
    with pytest.raises(ConfigError, match=r"no Ray can be reached there: what listens there"):
        check_ray("cluster.address", f"{nodes.address.rpartition(':')[0]}:{port}")


def test_a_job_needs_an_absolute_root(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match=r"root = 'runs': a job's working directory is a copy that Ray deletes"):
        driver.run(config(Path(), model))
    assert not list(copy.iterdir())


def test_a_run_folder_has_only_one_hub(model: Path, tmp_path: Path) -> None:
    made = config(tmp_path, model)
    first, second = Hub(made), Hub(made)
    try:
        assert first.open()
        with pytest.raises(ConfigError, match="in use by process"):
            second.open()
    finally:
        first.close()
    try:
        assert second.open()  # nothing was left behind
    finally:
        second.close()


def test_a_rewarder_is_placed_before_samplers_that_want_every_gpu(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    """The node has 4 GPUs: the sampler gets all of them, or the rewarder its tenth. Pairs need the rewarder."""
    crowded = {"cluster.sampler.gpus": 4, "cluster.rewarder.gpus": 0.1, "cluster.grows": True}
    made = config(tmp_path, model, **PLACES | crowded)
    with placed(made) as held:
        units = [unit for unit in restart_units(made, held, toy.rewards()) if unit.name != LEARNER]
        started = {unit.name: unit.make()[0] for unit in units}
        try:
            assert "GPU" in ray.get(started["rewarder-0"].node.remote(), timeout=30)
        finally:
            for process in started.values():
                ray.kill(process)


def test_missing_resources_are_reported_after_the_timeout(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    flags = {"cluster.learner.node": "B300", "cluster.placement_seconds": 0.5, "cluster.grows": True}
    message = r"no node with .*'B300': 0\.001.* within cluster\.placement_seconds = 0\.5 s; Ray has"
    with pytest.raises(ConfigError, match=message):
        driver.run(config(tmp_path, model, **flags), toy.rewards())


def test_a_run_that_the_nodes_can_never_hold_is_refused(nodes: Cluster, model: Path, tmp_path: Path) -> None:
    flags = {"cluster.learner.gpus": 1, "cluster.sampler.gpus": 1, "cluster.sampler.count": 9}
    with pytest.raises(ConfigError, match=r"asks for 10 GPUs .*Ray has 6 on 2 nodes: of 9 samplers 5 fit; use"):
        driver.run(config(tmp_path, model, **flags), toy.rewards())


def test_a_cuda_model_needs_gpus_for_every_role(model: Path, tmp_path: Path) -> None:
    flags = {"model.device": "cuda:0", "cluster.sampler.gpus": 1, "cluster.rewarder.gpus": 0.5}
    with pytest.raises(ConfigError, match=r"cluster\.learner\.gpus = 0, but model\.device = 'cuda:0'"):
        config(tmp_path, model, **flags)


def killing_a_sampler(made: RunConfig, lines: Lines) -> Callable[[], bool]:
    """A stop predicate that never stops the run, but kills sampler-0 once, after some steps."""
    killed: list[int] = []

    def stop() -> bool:
        if not killed and len(read_json_lines(made.folder / "metrics.jsonl")) >= 3:
            killed.append(int(lines.place("sampler-0")["process"]))
            os.kill(killed[0], signal.SIGKILL)
        return False

    return stop


def test_with_too_few_samplers_the_run_saves_and_stops(nodes: Cluster, tmp_path: Path) -> None:
    few = {"mode": "cluster", "cluster.restarts": 0, "cluster.min_samplers": 2, "simulation.sample_seconds": 0.05}
    made, lines = simulated(tmp_path, steps=5000, **few, **{"learner.checkpoint_every": 5000}), Lines()
    with pytest.raises(RunFailed, match=r"1 samplers are left; cluster\.min_samplers = 2"):
        driver.run(made, stop=killing_a_sampler(made, lines), progress=lines)
    (saved,) = checkpoint.steps(made.folder / "checkpoints")
    assert saved >= 3


def test_the_run_continues_without_a_sampler_that_crashes_too_often(nodes: Cluster, tmp_path: Path) -> None:
    flags = {"mode": "cluster", "cluster.restarts": 0, "simulation.sample_seconds": 0.05}
    made, lines = simulated(tmp_path, steps=30, **flags), Lines()
    result = driver.run(made, stop=killing_a_sampler(made, lines), progress=lines).result
    assert result is not None
    assert result["step"] == 30
    words = r"sampler-0 died 1 times within an hour \(cluster\.restarts = 0\).*; the run continues without it"
    assert sum(re.match(words, line) is not None for line in lines.said) == 1
    logs = made.folder / "logs"
    assert re.search(r"ERROR driver deploy.runtime.driver: sampler-0 died 1 times", (logs / "driver.log").read_text())
    assert "WARNING hub deploy.runtime.hub: sampler-0 crashed" in (logs / "hub.log").read_text()


def test_a_collection_needs_no_learner_and_makes_the_same_set_as_in_one_process(
    nodes: Cluster, model: Path, tmp_path: Path
) -> None:
    more_ranks_than_gpus = {"cluster.learner.count": 99}
    made = config(tmp_path, model, **PLACES | more_ranks_than_gpus | {"collect.prompts": 5})
    said = Lines()
    outcome = driver.run(made, toy.rewards(), progress=said)
    assert outcome.result == {"step": 0, "collected": 5, "candidates": 10}
    assert said.phases == ["collecting"]
    alone = toy.config(tmp_path / "alone", **{"model.path": model, "collect.prompts": 5})
    serial.run(alone, toy.rewards())
    here, there = read_set(made.folder), read_set(alone.folder)
    assert here.rows == there.rows
    assert list(here.faults()) == []
