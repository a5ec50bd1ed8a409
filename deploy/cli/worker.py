"""``douga worker``: joins a live run from any machine. Parsing imports no ZeroMQ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import of_machine_text
from deploy.cli.flags import FILL, add_command

WORKER = f"""\
Connects to the hub of a running cluster run, at the address that the run prints. The worker uses the run's
configuration and works until the run ends or you press Ctrl-C; other workers then redo its unfinished work. It reads
the same model files as the run and sends its clips or scores to the hub. Only these keys may be set, because they
differ between machines:
{FILL.fill(of_machine_text())}

examples:
  douga worker sampler --connect tcp://127.0.0.1:41873              on the same machine as the run
  douga worker sampler --connect tcp://10.0.0.5:7000 --key worker.key --model.device cuda:0
      worker.key is a copy of RUN/keys/worker.key (chmod 600). With a fixed port (cluster.port = 7000) the run keeps
      its address after a restart, so that the worker can reconnect.
"""


def add(commands: Any) -> None:
    """Adds the command of this file."""
    summary = "join a live run as a sampler or rewarder, from any machine"
    worker = add_command(commands, "worker", _work, summary, WORKER, takes_keys=True)
    worker.add_argument("role", choices=("sampler", "rewarder"))
    worker.add_argument("--connect", required=True, metavar="tcp://HOST:PORT", help="the address that the run printed")
    worker.add_argument("--key", type=Path, metavar="FILE", help="copy of RUN/keys/worker.key; not needed on loopback")
    worker.add_argument(
        "--patience",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="exit if no hub can be joined for this long, at the start or after the hub was lost (default: 300)",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:  # NaN, too
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds from 0, or inf")
    return seconds


def _work(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.runtime.workers import external

    return external.work(options.role, options.connect, options.key, options.patience, flags)
