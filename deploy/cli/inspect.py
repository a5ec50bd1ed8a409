"""``douga status``, ``watch`` and ``trace``: look at a run through its folder. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import ConfigError, StorageError
from common.errors.disk import write_whole
from deploy.cli.flags import RUN, add_command, add_server_options

STATUS = """\
Only reads the run folder, on any machine that has it. The run is not disturbed and does not have to be running.

examples:
  douga status runs/toon              progress, rates, and who waits for whom
  douga status toon --follow          ... every two seconds, until the run ends or Ctrl-C
  douga status toon --json            the same for programs
"""
WATCH = """\
Shows the newest pairs, chosen beside rejected, the curves, and the pipeline with its bottleneck. The page refreshes
itself. It only reads the run folder: the run is not disturbed, and may be starting, running, stopped or finished.

examples:
  douga watch runs/toon                                         open the address that it prints
  DOUGA_TOKEN=... douga watch toon --host 10.0.0.5              open to others; without a token only to this machine
"""
TRACE = """\
Every worker is a track with its units of work. Step metrics, the queue, lag, pushes, refreshes and events are included.
The time between two starts of a run is left out.

examples:
  douga trace runs/toon                       writes runs/toon/trace.json: open it at https://ui.perfetto.dev
  douga trace toon --out /tmp/toon.json       or in chrome://tracing
"""
TRACE_FILE = "trace.json"
EVERY = 2.0  # seconds between two readings of --follow


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    status = add_command(commands, "status", _status, "print a run's progress, and who waits for whom", STATUS)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--follow", action="store_true", help="repeat every two seconds")
    watch = add_command(commands, "watch", _watch, "serve a live web page of a run", WATCH)
    add_server_options(watch, 8720)
    trace = add_command(commands, "trace", _trace, "write a run's timeline for Perfetto or Chrome", TRACE)
    trace.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/trace.json")
    for command in (status, watch, trace):
        command.add_argument("run", help=RUN)


def _reader(run: str) -> Any:
    from deploy.inspect.snapshot import RunReader
    from deploy.run_dir import layout

    return RunReader(layout.find_run(run)[0])


def _status(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.inspect.status import lines, run_status

    reader = _reader(options.run)
    while True:
        found = run_status(reader.read())
        print(json.dumps(asdict(found), ensure_ascii=False) if options.json else "\n".join(lines(found)), flush=True)
        if not options.follow or found.phase in ("finished", "not running"):
            return 0
        time.sleep(EVERY)
        print("" if options.json or not sys.stdout.isatty() else "\x1b[H\x1b[2J", end="\n" if not options.json else "")


def _watch(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.inspect.web.app import serve

    return serve(_reader(options.run), options)


def _trace(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.inspect.trace import trace

    seen = _reader(options.run).read()
    out = options.out or seen.folder / TRACE_FILE
    if not seen.spans and not seen.events:
        raise ConfigError(f"{seen.folder}: no records yet")
    try:
        write_whole(out, json.dumps(trace(seen), ensure_ascii=False))
    except (OSError, StorageError) as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}") from None
    print(f"{out}: {len(seen.spans)} units of work; open it at https://ui.perfetto.dev or in chrome://tracing")
    return 0
