"""``douga status``, ``watch`` and ``trace``: a run seen from its folder. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigError, StorageError
from common.errors.disk import write_whole
from deploy import web_server

STATUS = """\
Reads the run folder and nothing else, on any machine that has it; the run is not disturbed, and need not run.

examples:
  douga status runs/toon              where it stands, rates, who waits for whom
  douga status toon --follow          ... again every two seconds, until the run ends or Ctrl-C
  douga status toon --json            the same for programs
"""
WATCH = """\
The newest pairs, winner beside loser, the curves, the pipeline with its bottleneck. The page renews itself. It reads
the run folder and nothing else: the run is not disturbed, may just begin, be finished, or lie still.

examples:
  douga watch runs/toon                                         open the address that it prints
  DOUGA_TOKEN=... douga watch toon --host 10.0.0.5              for others; without a token on this machine alone
"""
TRACE = """\
Every worker is a track with its units of work; a step's figures, the queue, lag, pushes, refreshes and events are there
too. The hours between two starts of a run are left out.

examples:
  douga trace runs/toon                       writes runs/toon/trace.json: open it at https://ui.perfetto.dev
  douga trace toon --out /tmp/toon.json       or in chrome://tracing
"""
TRACE_FILE = "trace.json"
EVERY = 2.0  # seconds between two looks of --follow
OWN = {
    "status": frozenset({"json", "follow"}),
    "watch": web_server.OPTIONS,
    "trace": frozenset({"out"}),
}


def add(commands: Any, add_command: Callable[..., Any]) -> None:
    """Add the subcommands to the parser; `add_command` is `cli._add`."""
    status = add_command(commands, "status", _status, "where a run stands, and who waits for whom", STATUS)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--follow", action="store_true", help="again every two seconds")
    watch = add_command(commands, "watch", _watch, "a web page on which a run can be seen at work", WATCH)
    web_server.add_options(watch, 8720)
    trace = add_command(commands, "trace", _trace, "write a run's timeline for Perfetto or Chrome", TRACE)
    trace.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/trace.json")
    for command in (status, watch, trace):
        command.add_argument("run", help="run folder, or its name under runs/")


def _reader(run: str) -> Any:
    from deploy.inspect.snapshot import RunReader  # noqa: PLC0415
    from deploy.run_dir import layout  # noqa: PLC0415

    return RunReader(layout.find_run(run)[0])


def _status(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.inspect.status import lines, run_status  # noqa: PLC0415 - `--help` answers at once

    reader = _reader(options.run)
    while True:
        found = run_status(reader.read())
        print(json.dumps(asdict(found), ensure_ascii=False) if options.json else "\n".join(lines(found)), flush=True)
        if not options.follow or found.phase in ("finished", "not running"):
            return 0
        time.sleep(EVERY)
        print("" if options.json or not sys.stdout.isatty() else "\x1b[H\x1b[2J", end="\n" if not options.json else "")


def _watch(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.cli import run  # noqa: PLC0415 - FastAPI, only for this
    from deploy.inspect.web.app import serve  # noqa: PLC0415

    return run.or_failed(partial(serve, _reader(options.run), options))


def _trace(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.inspect.trace import trace  # noqa: PLC0415

    seen = _reader(options.run).read()
    out = options.out or seen.folder / TRACE_FILE
    if not seen.spans and not seen.events:
        raise ConfigError(f"{seen.folder}: nothing was written down yet")
    try:
        write_whole(out, json.dumps(trace(seen), ensure_ascii=False))
    except (OSError, StorageError) as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}") from None
    print(f"{out}: {len(seen.spans)} units of work; open it at https://ui.perfetto.dev or in chrome://tracing")
    return 0
