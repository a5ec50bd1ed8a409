"""`douga monitor`: runs Prometheus, and Alertmanager and Grafana if they are installed, on loopback.

```
RUN/prometheus/targets.json ──> PROMETHEUS ── rules.yml ──> ALERTMANAGER ──> receivers
     the run's exporters            │                        alertmanager.yml
                                    └── queries <── GRAFANA: deploy/observability/grafana/
```

Their configuration is in `deploy/observability/prometheus` and `deploy/observability/grafana`; their data and logs are
in ``RUN/prometheus/`` of the first run. Imports no torch.
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
from common.files import write_whole
from deploy.run_dir.layout import find_run
from deploy.run_dir.signals import AGAIN, stop_on_signals

HERE = Path(__file__).parent
PROMETHEUS, GRAFANA = HERE / "prometheus", HERE / "grafana"
HOST, FOLDER = "127.0.0.1", "prometheus"
NAMES = {  # executables: Debian's name first, then upstream's
    "prometheus": ("prometheus",),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),
    "grafana": ("grafana-server",),
}
INSTALL = "Debian: apt-get install prometheus prometheus-alertmanager; others: https://prometheus.io/download"
START_SECONDS, END_SECONDS, POLL_SECONDS = 60.0, 20.0, 0.2


def rules() -> dict[str, Any]:
    """Returns the parsed rules file, ``{"groups": [...]}``. It is also valid as the ``spec`` of a PrometheusRule."""
    return yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))


def monitor(options: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM. Raises `ConfigError` if a program is missing, `RunFailed` if a server exits."""
    if not 0 <= options.port <= 65533:
        raise ConfigError(f"--port {options.port}: allowed are 0 to 65533")
    folders = [find_run(run)[0].resolve() for run in options.runs]
    programs = find_programs()
    receivers = _receivers(options.alertmanager, programs)
    with stop_on_signals(f"stopping Prometheus and the others; {AGAIN}") as stop, ExitStack() as stack:
        servers = start(stack, programs, folders, receivers, options.port)
        for server in servers:
            print(f"{server.name:13} http://{server.address}", flush=True)
        alerts = f"http://{servers[0].address}/alerts"
        missing = {
            "alertmanager": f"not installed; alerts are shown at {alerts}, and sent nowhere",
            "grafana": f"not installed; its dashboards: {GRAFANA / 'dashboards'}",
        }
        for name, words in missing.items():
            if not programs[name]:
                print(f"{name:13} {words}", flush=True)
        print(f"watching {', '.join(map(str, folders))}; Ctrl-C ends all", flush=True)
        _wait(servers, stop)
    return 0


def find_programs() -> dict[str, str]:
    """Returns the programs' paths, "" for a missing one. Raises `ConfigError` if Prometheus is missing."""
    return {name: _program(name) for name in NAMES}


def _program(name: str) -> str:
    path = next((path for program in NAMES[name] if (path := shutil.which(program))), "")
    if not path and name == "prometheus":
        raise ConfigError(f"monitor: {NAMES[name][0]} is not installed, or not on the PATH. {INSTALL}")
    return path


def _receivers(given: Path | None, programs: Mapping[str, str]) -> Path:
    if given is not None and not given.is_file():
        raise ConfigError(f"--alertmanager {given}: no such file; {PROMETHEUS / 'alertmanager.yml'} is an example")
    if given is not None and not programs["alertmanager"]:
        raise ConfigError(f"--alertmanager {given}: Alertmanager is not installed, or not on the PATH. {INSTALL}")
    return (given or PROMETHEUS / "alertmanager.yml").resolve()


# The servers.


@dataclass(frozen=True)
class Server:
    """A child process that serves at ``HOST:PORT``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def failed(self) -> RunFailed:
        """Returns the error for a server that exited: exit code and last line of its log."""
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        last = f": {lines[-1]:.300}" if lines else ""
        return RunFailed(f"{self.name} ended with exit code {self.process.returncode}{last} (full log: {self.log})")


def start(
    stack: ExitStack, programs: Mapping[str, str], folders: Sequence[Path], receivers: Path, port: int
) -> list[Server]:
    """Starts Prometheus on `port`, Alertmanager on the next port and Grafana on the one after, if installed.

    Returns the servers, Prometheus first. With `port` 0 the system chooses free ports. The servers end when `stack`
    closes. Alertmanager starts first, because Prometheus needs its address, as Grafana needs that of Prometheus.
    """
    place = folders[0] / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    ports = [port + after if port else 0 for after in range(3)]
    others = []
    if programs["alertmanager"]:
        command = alertmanager_command(programs["alertmanager"], place, receivers, ports[1])
        others.append(stack.enter_context(running("alertmanager", command, place, "/-/ready")))
    config = place / "prometheus.yml"
    addresses = [one.address for one in others]
    write_whole(config, yaml.safe_dump(prometheus_config(folders, addresses), sort_keys=False))
    command = prometheus_command(programs["prometheus"], place, config, ports[0])
    prometheus = stack.enter_context(running("prometheus", command, place, "/-/ready"))
    if programs["grafana"]:
        environment = grafana_environment(place, prometheus.address, ports[2])
        command = [programs["grafana"], "--homepath", os.environ.get("GF_PATHS_HOME", "/usr/share/grafana")]
        others.append(stack.enter_context(running("grafana", command, place, "/api/health", environment)))
    return [prometheus, *others]


def prometheus_config(folders: Sequence[Path], alertmanagers: Sequence[str]) -> dict[str, Any]:
    """Returns ``prometheus.yml`` for these runs, with absolute paths and the ``HOST:PORT`` of each Alertmanager."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = list(alertmanagers)
    for job in config["scrape_configs"]:
        for lists in job["file_sd_configs"]:
            lists["files"] = [str(folder / FOLDER / Path(file).name) for folder in folders for file in lists["files"]]
    return config


def prometheus_command(program: str, place: Path, config: Path, port: int) -> list[str]:
    """The command line of Prometheus."""
    listen = f"--web.listen-address={HOST}:{port}"
    return [program, f"--config.file={config}", f"--storage.tsdb.path={place / 'data'}", listen]


def alertmanager_command(program: str, place: Path, config: Path, port: int) -> list[str]:
    """The command line of Alertmanager. An empty cluster address disables clustering and its port."""
    listen = (f"--web.listen-address={HOST}:{port}", "--cluster.listen-address=")
    return [program, f"--config.file={config}", f"--storage.path={place / 'alertmanager'}", *listen]


def grafana_environment(place: Path, prometheus: str, port: int) -> dict[str, str]:
    """Grafana's settings: anonymous read-only access, on loopback only."""
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
    name: str, command: Sequence[str], place: Path, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Starts a server and yields it once GET `ready` returns 200. Terminates it at the end of the block.

    Raises `RunFailed` if it exits, or is not ready within `START_SECONDS`.
    """
    log = place / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,  # Ctrl-C must reach only this process, which stops the servers in order
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
    raise RunFailed(f"{server.name} did not answer within {START_SECONDS:g} s (log: {server.log})")


def _listening(process: subprocess.Popen[bytes]) -> str:
    """Returns the ``HOST:PORT`` at which a process listens, "" if it does not yet. Needed because port 0 is allowed."""
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
    print("stopped; data and logs are kept", file=sys.stderr)
