"""``douga monitor``: Prometheus, Alertmanager and Grafana for runs. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

MONITOR = """\
Starts Prometheus and Alertmanager, and Grafana where grafana-server is installed, on loopback; all end with Ctrl-C.
They know the project's alerts and dashboards, and find the run's processes by RUN/prometheus/targets.json, also those
that come later. Data and logs are kept in RUN/prometheus/, of the first run named. docs/monitoring.md shows more.

examples:
  douga monitor runs/toon                             in a second terminal, while `douga run` works in the first
  douga monitor runs/a runs/b --port 9190             two runs side by side; Prometheus at 9190, the others above it
  douga monitor toon --alertmanager team.yml          with receivers of your own for the alerts
"""
OWN = frozenset({"port", "alertmanager"})


def add(commands: Any, add_command: Callable[..., Any]) -> None:
    """Add the subcommand to the parser; `add_command` is `cli._add`."""
    words = "watch runs with Prometheus, alerts and dashboards"
    command = add_command(commands, "monitor", _monitor, words, MONITOR)
    command.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or its name under runs/")
    command.add_argument(
        "--port", type=int, default=9090, help="of Prometheus; the others take the next ones; 0: free ones (9090)"
    )
    command.add_argument("--alertmanager", type=Path, metavar="FILE", help="Alertmanager's configuration: who is told")


def _monitor(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.cli import run  # noqa: PLC0415 - `--help` answers without what serves
    from deploy.observability import stack  # noqa: PLC0415

    return run.or_failed(partial(stack.monitor, options))
