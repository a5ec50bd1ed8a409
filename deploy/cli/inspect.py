"""``douga status``, ``watch`` and ``trace``: show a run from its folder. Parsing imports nothing heavy."""

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
from common.files import write_whole
from deploy.cli.flags import RUN, add_command, add_server_options

STATUS = """\
Only reads the run folder, so it works on any machine that has the folder, and whether or not the run is running.

examples:
  douga status runs/toon              progress, rates, and which worker waits for which
  douga status toon --follow          the same every two seconds, until the run ends or Ctrl-C
  douga status toon --json            the same as JSON
"""
WATCH = """\
Shows the newest pairs (chosen beside rejected), the training curves, and the pipeline with its bottleneck. The page
updates itself. It only reads the run folder; the run may be starting, running, stopped or finished. Ctrl-C closes the
page, not the run.

examples:
  douga watch runs/toon                                         open the printed address in a browser
  DOUGA_TOKEN=... douga watch toon --host 10.0.0.5              serve other machines; this requires a token
"""
TRACE = """\
Reads the run folder and writes a trace with one track per worker, which shows its units of work, and with step metrics,
the queue, lag, weight pushes, reference refreshes and events. The time between a stop and the next start is left out.

examples:
  douga trace runs/toon                       writes runs/toon/trace.json; open it at https://ui.perfetto.dev
  douga trace toon --out toon.json            writes toon.json
"""
TRACE_FILE = "trace.json"
EVERY = 2.0  # seconds between two readings of --follow


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    status = add_command(commands, "status", _status, "print a run's progress, rates and waiting workers", STATUS)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--follow", action="store_true", help="repeat every two seconds")
    watch = add_command(commands, "watch", _watch, "serve a live web page of a run", WATCH)
    add_server_options(watch, 8720)
    trace = add_command(commands, "trace", _trace, "write a run's timeline for Perfetto or Chrome", TRACE)
    trace.add_argument("--out", type=Path, metavar="FILE", help="trace file to write (default: RUN/trace.json)")
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

    snapshot = _reader(options.run).read()
    out = options.out or snapshot.folder / TRACE_FILE
    if not snapshot.spans and not snapshot.events:
        raise ConfigError(f"{snapshot.folder}: no records yet")
    try:
        write_whole(out, json.dumps(trace(snapshot), ensure_ascii=False))
    except (OSError, StorageError) as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}") from None
    print(f"{out}: {len(snapshot.spans)} units of work; open it at https://ui.perfetto.dev or in chrome://tracing")
    return 0
