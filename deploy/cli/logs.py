"""``douga logs``: prints the log files of a run, merged by time. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from deploy.cli.flags import RUN, add_command

if TYPE_CHECKING:
    from deploy.inspect.logs import Filter, LogReader
    from deploy.logs.records import Line

LOGS = """\
Reads RUN/logs/PROCESS.log, one file per process of the run. Workers on other nodes, and those that joined with
`douga worker`, send their records to the hub, which writes their files. A serial run has one file, serial.log. Times
are UTC.

examples:
  douga logs runs/toon                              the last 200 records of all processes
  douga logs toon --follow                          the same, then new records until Ctrl-C
  douga logs toon --level warning --since 10m       warnings and errors of the last ten minutes
  douga logs toon --role sampler --lines 0          all records of the samplers
  douga logs toon --worker sampler-3 --follow       one process

The keys logs.level, logs.max_bytes and logs.backups set what a run logs and how much of it is kept.
"""
LINES = 200
EVERY = 0.5  # seconds between two reads with --follow
COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
PLAIN = "\x1b[0m"


def add(commands: Any) -> None:
    """Adds the command of this file."""
    logs = add_command(commands, "logs", _logs, "print the logs of a run's processes, merged by time", LOGS)
    logs.add_argument("run", help=RUN)
    logs.add_argument("--follow", action="store_true", help="keep printing new records until Ctrl-C")
    logs.add_argument("--role", default="", help="driver, hub, learner, sampler, rewarder or serial")
    logs.add_argument("--worker", default="", metavar="NAME", help="one process, e.g. sampler-3")
    logs.add_argument(
        "--level", default="debug", help="lowest level: debug (default), info, warning, error or critical"
    )
    logs.add_argument(
        "--since", default="", metavar="TIME", help="age (30s, 10m, 2h, 1d) or UTC time (2026-01-31T08:15)"
    )
    logs.add_argument(
        "--lines",
        type=int,
        default=LINES,
        metavar="N",
        help=f"print at most the last N records; 0: all (default: {LINES})",
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
    except BrokenPipeError:  # `douga logs RUN | head`: redirect stdout, so that the flush at exit does not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _check(reader: LogReader, wanted: Filter, follow: bool) -> None:
    """Raises `ConfigError` if no log file matches and `follow` is off."""
    processes = reader.processes()
    if follow or any(wanted.has(process) for process in processes):
        return
    if not processes:
        raise ConfigError(f"{reader.folder}: no logs yet; --follow waits for them")
    asked = f"--worker {wanted.worker}" if wanted.worker else f"--role {wanted.role}"
    raise ConfigError(f"{asked}: no such log in {reader.folder}; there are {', '.join(processes)}")


def _show(lines: Iterable[Line]) -> None:
    coloured = sys.stdout.isatty()
    for line in lines:
        colour = COLOURS.get(line.level, "") if coloured else ""
        print(f"{colour}{line.text}{PLAIN if colour else ''}")
    sys.stdout.flush()
