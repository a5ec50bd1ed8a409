"""``douga logs``: the log files of a run, merged by time. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from deploy.cli.flags import add_command

if TYPE_CHECKING:
    from deploy.inspect.logs import Filter, LogReader
    from deploy.logs.records import Line

LOGS = """\
Every process of a run writes RUN/logs/PROCESS.log; workers on other nodes, and those that joined with `douga worker`,
write there by way of the hub. A serial run has one file, serial.log. Times are UTC.

examples:
  douga logs runs/toon                              the last 200 records of all processes, by time
  douga logs toon --follow                          ... and what comes, until Ctrl-C
  douga logs toon --level warning --since 10m       what went wrong in the last ten minutes
  douga logs toon --role sampler --lines 0          all that the samplers logged
  douga logs toon --worker sampler-3 --follow       one process

The keys logs.level, logs.max_bytes and logs.backups decide what is written and how much is kept.
"""
LINES = 200
EVERY = 0.5  # seconds between two looks of --follow
COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
PLAIN = "\x1b[0m"


def add(commands: Any) -> None:
    """Adds the command of this file."""
    logs = add_command(commands, "logs", _logs, "what the processes of a run log, merged by time", LOGS)
    logs.add_argument("run", help="run folder, or its name under runs/")
    logs.add_argument("--follow", action="store_true", help="keep showing what comes, until Ctrl-C")
    logs.add_argument("--role", default="", help="driver, hub, learner, sampler, rewarder or serial")
    logs.add_argument("--worker", default="", metavar="NAME", help="one process, e.g. sampler-3")
    logs.add_argument("--level", default="debug", help="debug, info, warning, error or critical, and all above it")
    logs.add_argument(
        "--since", default="", metavar="TIME", help="30s, 10m, 2h or 1d ago, or a UTC time like 2026-01-31T08:15"
    )
    logs.add_argument(
        "--lines", type=int, default=LINES, metavar="N", help=f"records to begin with; 0 for all (default: {LINES})"
    )


def _logs(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.inspect.logs import LogReader, filter_of
    from deploy.run_dir import layout

    if options.lines < 0:
        raise ConfigError(f"--lines {options.lines}: must be 0 or more")
    wanted = filter_of(options.role, options.worker, options.level, options.since)
    reader = LogReader(layout.find_run(options.run)[0], wanted)
    _check(reader, wanted, options.follow)
    try:
        _show(reader.read(options.lines))
        while options.follow:
            time.sleep(EVERY)
            _show(reader.read())
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # of `douga logs RUN | head`; nothing may be flushed into it at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _check(reader: LogReader, wanted: Filter, follow: bool) -> None:
    """`ConfigError` when there is nothing to show, and nothing to come."""
    there = reader.processes()
    if follow or any(wanted.has(process) for process in there):
        return
    if not there:
        raise ConfigError(f"{reader.folder}: no logs yet; --follow waits for them")
    asked = f"--worker {wanted.worker}" if wanted.worker else f"--role {wanted.role}"
    raise ConfigError(f"{asked}: no such log in {reader.folder}; there are {', '.join(there)}")


def _show(lines: Iterable[Line]) -> None:
    coloured = sys.stdout.isatty()
    for line in lines:
        colour = COLOURS.get(line.level, "") if coloured else ""
        print(f"{colour}{line.text}{PLAIN if colour else ''}")
    sys.stdout.flush()
