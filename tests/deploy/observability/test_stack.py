"""``douga monitor`` for real: Prometheus and Alertmanager watch two runs, and two real faults reach Alertmanager.

```
simulated   a cluster run on Ray, in a process of its own; its rewarder is killed
drifting      a serial run of a tiny model, in this process, with guardrails; its scorer drifts from batch to batch
```
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.stress import chaos
from common.config import load_config
from deploy.cli.main import main
from deploy.observability import stack
from deploy.observability.grafana.panels import ALL
from deploy.run_dir import layout
from deploy.runtime import serial
from tests.deploy.guardrails.test_monitor import DriftingReward
from tests.deploy.runtime.test_run_metrics import metrics_of_other_algorithms
from tests.support import toy
from tests.support.tiny import tiny_pipeline

pytestmark = pytest.mark.timeout(600)

SIMULATED, DRIFTING = "simulated", "drifting"
ABSENT, DRIFT = "DougaRoleAbsent", "DougaScorerDrift"  # alerts of the faults
GPU = r"douga_gpu_\w+|ray_node_gpus_\w+"  # no series without a GPU
needs_programs = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("amtool")),
    reason="needs Prometheus; Debian: apt-get install prometheus prometheus-alertmanager",
)


@dataclass
class Watched:
    """Two runs, and the servers that watch them."""

    prometheus: stack.Server
    alertmanager: stack.Server
    simulated: chaos.Run
    client: httpx.Client
    then: float = 0.0  # time just before the other run ended
    told: list[dict[str, Any]] = field(default_factory=list)  # alerts of the scorer's drift at that time

    def ask(self, query: str, **when: float) -> list[dict[str, Any]]:
        """Returns the series of the answer."""
        asked = {"query": query} | when
        answer = self.client.get(f"http://{self.prometheus.address}/api/v1/query", params=asked)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return answer.json()["data"]["result"]

    def answers(self, query: str) -> bool:
        """Whether one of the runs has data."""
        asked = query.replace("$__rate_interval", "1m")
        now, then = asked.replace("$run", SIMULATED), asked.replace("$run", DRIFTING)
        return bool(self.ask(now) or self.ask(then, time=self.then))

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """The alerts of that name in Alertmanager."""
        words = [f"--alertmanager.url=http://{self.alertmanager.address}", "--output=json", f"alertname={name}"]
        done = subprocess.run(["amtool", "alert", "query", *words], capture_output=True, timeout=60, check=True)
        return json.loads(done.stdout)


def hasten(place: Path) -> Path:
    """The files of `deploy/observability/prometheus` with shorter times."""
    config, rules, receivers = (
        yaml.safe_load((stack.PROMETHEUS / name).read_text("utf-8"))
        for name in ("prometheus.yml", "rules.yml", "alertmanager.yml")
    )
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        job["scrape_interval"], job["file_sd_configs"][0]["refresh_interval"] = "2s", "1s"
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if rule.get("alert") in (ABSENT, DRIFT):
            rule["for"] = "2s"
    receivers["route"] |= {"group_wait": "1s"}
    place.mkdir()
    for name, content in (("prometheus.yml", config), ("rules.yml", rules), ("alertmanager.yml", receivers)):
        (place / name).write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return place


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    root = tmp_path_factory.mktemp("monitoring")
    flags = chaos.SIMULATED | {"name": SIMULATED, "root": root / "runs", "steps": 100_000, "mode": "cluster"}
    flags |= {"learner.batch_size": 2, "cluster.sampler.count": 2, "cluster.restart_seconds": 60}
    run = chaos.Run(load_config(layout.TOON, flags), root / "simulated.log")
    with ExitStack() as ends, pytest.MonkeyPatch.context() as patch:
        ends.callback(run.end)
        run.start()
        patch.setattr(stack, "PROMETHEUS", hasten(root / "rules"))
        folders = [run.config.folder, root / "runs" / DRIFTING]
        receivers = stack.PROMETHEUS / "alertmanager.yml"
        prometheus, alertmanager, *_ = stack.start(ends, stack.find_programs(), folders, receivers, 0)
        client = ends.enter_context(httpx.Client(timeout=60, trust_env=False))
        made = Watched(prometheus, alertmanager, run, client)
        run_with_a_scorer_that_changes(made, root)
        late = "run:douga_wasted:ratio_increase1h and run:douga_expired:ratio_increase1h and on (run) ray_node_mem_used"
        toy.wait_until(lambda: alive(run) and bool(made.ask(late)), 300)
        yield made


def alive(run: chaos.Run) -> bool:
    assert run.ended() is None, run.log.read_text("utf-8")
    return True


def run_with_a_scorer_that_changes(watched: Watched, root: Path) -> None:
    """Runs until Alertmanager has the alert."""
    tiny_pipeline(root / "model")
    config = toy.config(
        root, **{"name": DRIFTING, "steps": 1000, "guardrails.prompts": 4, "guardrails.every_pushes": 1}
    )

    def known() -> bool:  # called between any two units of work
        watched.then, watched.told = time.time(), watched.alerts(DRIFT)
        return bool(watched.told and watched.ask('up{run="drifting"} == 1', time=watched.then))

    assert serial.run(config, toy.rewards(DriftingReward), stop=known).result is None


# Queries.


def wait_for_answers(watched: Watched, asked: list[str]) -> None:
    """A process that is too busy to answer has no series until the next scrape."""
    for query in asked:
        try:
            toy.wait_until(lambda query=query: watched.answers(query), 60)
        except TimeoutError:
            pytest.fail(f"no data: {query}")


def queries() -> list[str]:
    return sorted({query for one in ALL for panel in one.panels for query in panel.queries.values()})


@needs_programs
def test_every_dashboard_query_has_data(watched: Watched) -> None:
    others, has_gpu = metrics_of_other_algorithms(toy.config(Path())), Path("/dev/nvidia0").exists()
    asked = queries()
    empty = {one for one in asked if any(name in one for name in others) or (re.search(GPU, one) and not has_gpu)}
    assert not [one for one in empty if watched.answers(one)]  # they are valid PromQL
    wait_for_answers(watched, [one for one in asked if one not in empty])


@needs_programs
def test_every_metric_of_the_rules_exists(watched: Watched) -> None:
    """Healthy runs have no alerts, so each metric of the expressions is queried with its label matchers."""
    expressions = [rule["expr"] for group in stack.rules()["groups"] for rule in group["rules"]]
    metric = r"(?:\brun\w*:\w+:\w+|\bdouga_\w+|\bup\b)(?:{[^}]*})?"
    asked = {looked_at for expression in expressions for looked_at in re.findall(metric, expression)}
    wait_for_answers(watched, sorted(asked))


@needs_programs
def test_every_process_of_both_runs_is_scraped(watched: Watched) -> None:
    up = watched.ask('max_over_time(up{run="simulated", job="douga"}[5m]) == 1')
    assert {one["metric"]["process"] for one in up} == {"hub", "learner", "rewarder", "sampler"}
    assert len({one["metric"]["worker"] for one in up}) == 5
    then = watched.ask('up{run="drifting"}', time=watched.then)
    assert [one["metric"]["process"] for one in then] == ["serial"]


# Faults.


@needs_programs
def test_a_drifting_scorer_reaches_alertmanager(watched: Watched) -> None:
    assert {one["labels"]["run"] for one in watched.told} == {DRIFTING}
    for one in watched.told:
        words = "the \\w+ score of the same base model clips changed by [+][0-9.]+ points since the start[.]"
        assert re.fullmatch(f"drifting: {words}", one["annotations"]["summary"])
        assert "docs/alerts.md#dougascorerdrift" in one["annotations"]["runbook"]


@needs_programs
def test_a_killed_role_reaches_alertmanager(watched: Watched) -> None:
    assert not watched.ask('ALERTS{run="simulated", alertstate="firing"}')
    rewarder = watched.simulated.process("rewarder")
    assert rewarder is not None
    rewarder.kill()
    toy.wait_until(lambda: bool(watched.alerts(ABSENT)))
    (told,) = watched.alerts(ABSENT)
    assert told["labels"]["run"] == SIMULATED
    assert told["labels"]["role"] == "rewarder"
    assert told["labels"]["severity"] == "critical"
    assert told["annotations"]["summary"] == "simulated: no rewarder is running."
    assert watched.ask('increase(douga_worker_crashes_total{run="simulated", role="rewarder"}[5m]) > 0')


# The command.


def folder_of_a_run(root: Path) -> Path:
    config = toy.config(root, **{"model.path": "toon"})
    with layout.claim(config) as folder:
        return folder


@contextmanager
def command(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """``douga monitor``, as a user starts it; stopped after the block."""
    words = [sys.executable, "-m", "deploy.cli", "monitor", str(folder), "--port", "0"]
    environment, pipe = os.environ | (env or {}), subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


@needs_programs
def test_the_command_prints_addresses_and_stops_all_on_ctrl_c(tmp_path: Path) -> None:
    folder = folder_of_a_run(tmp_path)
    with command(folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = iter(process.stdout.readline, "")
        said = dict(line.split(maxsplit=1) for line in itertools.takewhile(lambda line: "Ctrl-C" not in line, lines))
        children = psutil.Process(process.pid).children()
        assert {child.name() for child in children} >= {"prometheus", "prometheus-alertmanager"}
        address = said["prometheus"].strip()
        config = httpx.get(f"{address}/api/v1/status/config", timeout=60, trust_env=False).json()["data"]["yaml"]
        assert f"{folder}/prometheus/targets.json" in config
        assert said["alertmanager"].strip().removeprefix("http://") in config
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "stopping" in process.stderr.read()
    assert not psutil.wait_procs(children, 10)[1]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus; Debian: apt-get install prometheus")
def test_prometheus_alone_shows_the_alerts(tmp_path: Path) -> None:
    folder, programs = folder_of_a_run(tmp_path), tmp_path / "bin"
    programs.mkdir()
    (programs / "prometheus").symlink_to(shutil.which("prometheus") or "")
    with command(folder, {"PATH": str(programs)}) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        said = dict(line.split(maxsplit=1) for line in itertools.takewhile(lambda line: "Ctrl-C" not in line, lines))
        address = said["prometheus"].strip()
        assert said["alertmanager"].strip() == f"not installed; alerts are shown at {address}/alerts, and sent nowhere"
        assert {child.name() for child in psutil.Process(process.pid).children()} == {"prometheus"}
        found = httpx.get(f"{address}/api/v1/alertmanagers", timeout=60, trust_env=False).json()["data"]
        assert found == {"activeAlertmanagers": [], "droppedAlertmanagers": []}
        rules = httpx.get(f"{address}/api/v1/rules", timeout=60, trust_env=False).json()["data"]["groups"]
        assert "DougaRewardFell" in {rule["name"] for group in rules for rule in group["rules"]}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_receivers_need_alertmanager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of_a_run(tmp_path)
    monkeypatch.setattr(stack, "find_programs", lambda: {"prometheus": "x", "alertmanager": "", "grafana": ""})
    receivers = tmp_path / "team.yml"
    receivers.write_text("")
    assert main(["monitor", str(folder), "--alertmanager", str(receivers)]) == 2
    assert f"--alertmanager {receivers}: Alertmanager is not installed, or not on the PATH" in capsys.readouterr().err


@needs_programs
def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_a_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["monitor", str(folder), "--port", str(taken.getsockname()[1] - 1)]) == 3
    said = capsys.readouterr().err
    assert said.startswith("douga: alertmanager ended with exit code 1: ")
    assert "address already in use" in said
    assert said.count("\n") == 1


def test_without_prometheus_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of_a_run(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["monitor", str(folder)]) == 2
    assert "apt-get install prometheus prometheus-alertmanager" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no run folder"),
        (["RUN", "--port", "65534"], "--port 65534: allowed are 0 to 65533"),
        (["RUN", "--alertmanager", "none.yml"], "--alertmanager none.yml: no such file"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    folder = folder_of_a_run(tmp_path)
    monkeypatch.setattr(stack, "find_programs", dict)
    assert main(["monitor", *(str(folder) if word == "RUN" else word for word in words)]) == 2
    assert said in capsys.readouterr().err
