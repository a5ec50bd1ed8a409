"""``douga monitor``: Prometheus, Alertmanager and Grafana for runs. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.cli.flags import RUN, add_command

MONITOR = """\
Starts Prometheus, and Alertmanager and Grafana if they are installed, all on loopback, with the project's alerts and
dashboards. Ctrl-C stops them. Prometheus reads the addresses of the run's processes from
RUN/prometheus/targets.json, and follows its changes. Data and logs are written to RUN/prometheus/ of the first run.
See docs/monitoring.md.

examples:
  douga monitor runs/toon                             in a second terminal, beside `douga run`
  douga monitor runs/a runs/b --port 9190             two runs; Prometheus on port 9190, the others on the next ports
  douga monitor toon --alertmanager team.yml          send alerts to your own receivers
"""


def add(commands: Any) -> None:
    """Adds the command of this file."""
    summary = "start Prometheus, Alertmanager and Grafana for runs"
    command = add_command(commands, "monitor", _monitor, summary, MONITOR)
    command.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    command.add_argument(
        "--port",
        type=int,
        default=9090,
        help="port of Prometheus; the others use the next ports; 0: free ports (default: 9090)",
    )
    command.add_argument("--alertmanager", type=Path, metavar="FILE", help="Alertmanager configuration with receivers")


def _monitor(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.observability import stack

    return stack.monitor(options)
