"""What watches runs from outside: Prometheus, Alertmanager and Grafana, started on loopback in front of run folders.

```
RUN/prometheus/targets.json ──> PROMETHEUS ── rules.yml ──> ALERTMANAGER ──> receivers
     the run's exporters            │                        alertmanager.yml
                                    └── queries <── GRAFANA: deploy/observability/grafana/
```

What they are told lies in `deploy/observability/prometheus` and `deploy/observability/grafana`; what they keep, in
``RUN/prometheus/`` of the first run. Imports no torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from common.errors import ConfigError, RunFailed
from common.errors.disk import write_whole
from deploy.run_dir.layout import find_run
from deploy.run_dir.signals import AGAIN, stop_on_signals

HERE = Path(__file__).parent
PROMETHEUS, GRAFANA = HERE / "prometheus", HERE / "grafana"
HOST, FOLDER = "127.0.0.1", "prometheus"
NAMES = {  # as they are called by Debian and by their makers
    "prometheus": ("prometheus",),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),
    "grafana": ("grafana-server",),
}
INSTALL = "Debian: apt-get install prometheus prometheus-alertmanager; others: https://prometheus.io/download"
START_SECONDS, END_SECONDS, POLL_SECONDS = 60.0, 20.0, 0.2


def rules() -> dict[str, Any]:
    """The rules file as Prometheus reads it, ``{"groups": [...]}``: also what a PrometheusRule has as its ``spec``."""
    return yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))


def monitor(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. `ConfigError` for what is missing, `RunFailed` when a server ends by itself."""
    if not 0 <= options.port <= 65533:
        raise ConfigError(f"--port {options.port}: allowed are 0 to 65533")
    folders = [find_run(run)[0].resolve() for run in options.runs]
    programs, receivers = find_programs(), _receivers(options.alertmanager)
    with stop_on_signals(f"stopping Prometheus and the others; {AGAIN}") as stop, ExitStack() as stack:
        servers = start(stack, programs, folders, receivers, options.port)
        for server in servers:
            print(f"{server.name:13} http://{server.address}", flush=True)
        if not programs["grafana"]:
            print(f"{'grafana':13} not installed; its dashboards: {GRAFANA / 'dashboards'}", flush=True)
        print(f"watching {', '.join(map(str, folders))}; Ctrl-C ends all", flush=True)
        _wait(servers, stop)
    return 0


def find_programs() -> dict[str, str]:
    """Their paths; empty where Grafana is not installed. `ConfigError` for the others."""
    return {name: _program(name) for name in NAMES}


def _program(name: str) -> str:
    path = next((path for program in NAMES[name] if (path := shutil.which(program))), "")
    if not path and name != "grafana":
        raise ConfigError(f"monitor: {NAMES[name][0]} is not installed, or not on the PATH. {INSTALL}")
    return path


def _receivers(given: Path | None) -> Path:
    if given is not None and not given.is_file():
        raise ConfigError(
            f"--alertmanager {given}: no such file; {PROMETHEUS / 'alertmanager.yml'} is one to begin from"
        )
    return (given or PROMETHEUS / "alertmanager.yml").resolve()


# The servers.


@dataclass(frozen=True)
class Server:
    """A child process that answers at ``HOST:PORT``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def failed(self) -> RunFailed:
        """What to say when it ended by itself."""
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        last = f": {lines[-1]:.300}" if lines else ""
        return RunFailed(f"{self.name} ended with exit code {self.process.returncode}{last} (all of it: {self.log})")


def start(
    stack: ExitStack, programs: Mapping[str, str], folders: Sequence[Path], receivers: Path, port: int
) -> list[Server]:
    """Prometheus at `port`, Alertmanager and, where there is one, Grafana at the next; with 0 at free ones.

    They end when `stack` closes. Alertmanager is first: Prometheus must know its address, Grafana that of Prometheus.
    """
    place = folders[0] / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    ports = [port + after if port else 0 for after in range(3)]
    words = alertmanager_words(programs["alertmanager"], place, receivers, ports[1])
    alertmanager = stack.enter_context(running("alertmanager", words, place, "/-/ready"))
    config = place / "prometheus.yml"
    write_whole(config, yaml.safe_dump(prometheus_config(folders, alertmanager.address), sort_keys=False))
    words = prometheus_words(programs["prometheus"], place, config, ports[0])
    prometheus = stack.enter_context(running("prometheus", words, place, "/-/ready"))
    servers = [prometheus, alertmanager]
    if programs["grafana"]:
        environment = grafana_environment(place, prometheus.address, ports[2])
        words = [programs["grafana"], "--homepath", os.environ.get("GF_PATHS_HOME", "/usr/share/grafana")]
        servers.append(stack.enter_context(running("grafana", words, place, "/api/health", environment)))
    return servers


def prometheus_config(folders: Sequence[Path], alertmanager: str) -> dict[str, Any]:
    """``prometheus.yml`` for these runs, with full paths and Alertmanager's ``HOST:PORT``."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    for job in config["scrape_configs"]:
        for lists in job["file_sd_configs"]:
            lists["files"] = [str(folder / FOLDER / Path(file).name) for folder in folders for file in lists["files"]]
    return config


def prometheus_words(program: str, place: Path, config: Path, port: int) -> list[str]:
    """The command line of Prometheus."""
    listen = f"--web.listen-address={HOST}:{port}"
    return [program, f"--config.file={config}", f"--storage.tsdb.path={place / 'data'}", listen]


def alertmanager_words(program: str, place: Path, config: Path, port: int) -> list[str]:
    """The command line of Alertmanager, alone: without a cluster's port."""
    listen = (f"--web.listen-address={HOST}:{port}", "--cluster.listen-address=")
    return [program, f"--config.file={config}", f"--storage.path={place / 'alertmanager'}", *listen]


def grafana_environment(place: Path, prometheus: str, port: int) -> dict[str, str]:
    """Grafana's settings: on loopback whoever is on the machine may look, without a password, and change nothing."""
    own = place / "grafana"
    return {
        "GF_SERVER_HTTP_ADDR": HOST,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": str(own),
        "GF_PATHS_LOGS": str(own / "log"),
        "GF_PATHS_PLUGINS": str(own / "plugins"),
        "GF_PATHS_PROVISIONING": str(GRAFANA / "provisioning"),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "DOUGA_PROMETHEUS": f"http://{prometheus}",  # read by provisioning/
        "DOUGA_DASHBOARDS": str(GRAFANA / "dashboards"),
    }


@contextmanager
def running(
    name: str, words: Sequence[str], place: Path, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server, once GET `ready` answers 200; ended with the block. `RunFailed` when it ends or does not come to it."""
    log = place / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,  # a terminal's Ctrl-C is for us, who end them in order
        )
    try:
        yield _ready(Server(name, process, log), ready)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(server: Server, path: str) -> Server:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if server.process.poll() is not None:
            raise server.failed()
        address = _listening(server.process)
        if address and _answers(f"http://{address}{path}"):
            return Server(server.name, server.process, server.log, address)
        time.sleep(POLL_SECONDS)
    raise RunFailed(f"{server.name} did not answer within {START_SECONDS:g} s (its log: {server.log})")


def _listening(process: subprocess.Popen[bytes]) -> str:
    """The ``HOST:PORT`` at which a process listens, which with port 0 only the system knows; empty before it does."""
    try:
        connections = psutil.Process(process.pid).net_connections("tcp")
    except psutil.Error:
        return ""
    ports = [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]
    return f"{HOST}:{ports[0]}" if ports else ""


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _wait(servers: Sequence[Server], stop: Callable[[], bool]) -> None:
    while not stop():
        for server in servers:
            if server.process.poll() is not None:
                raise server.failed()
        time.sleep(POLL_SECONDS)
    print("ended; data and logs are kept", file=sys.stderr)
