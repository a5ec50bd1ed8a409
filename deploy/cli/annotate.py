"""``douga annotate``: a web page for rating and comparing clips. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.cli.flags import add_command, add_server_options

ANNOTATE = """\
PLACE is a run (its held-out clips, base and aligned), a folder with a ratings.jsonl or a samples.json, or a folder of
mp4 files. Answers are written to PLACE/annotations.sqlite. You can stop with Ctrl-C and restart at any time; no answer
is lost.

examples:
  douga annotate runs/toon                        rate and compare; open the printed address in a browser
  douga annotate clips --rubric huvidpo           three questions instead of AnimeReward's six
  douga annotate clips --rubric mine.toml         your own questions; docs/annotate.md documents the file
  douga annotate runs/toon --results              print the results as tables
  douga annotate clips --export rated             write rated/ratings.jsonl, rated/pairs.jsonl and the clips
  DOUGA_TOKEN=... douga annotate clips --host 10.0.0.5      serve other machines; this requires a token
"""


def add(commands: Any) -> None:
    """Adds the command of this file."""
    summary = "serve a web page where people rate and compare clips"
    command = add_command(commands, "annotate", _annotate, summary, ANNOTATE)
    command.add_argument("place", type=Path, metavar="PLACE", help="run folder or its name under runs/, or a folder")
    command.add_argument("--rubric", default="anime", help="anime (default), huvidpo, or a TOML file")
    command.add_argument("--annotators", type=int, default=3, help="number of people who rate each clip (default: 3)")
    command.add_argument("--pairs", type=int, default=200, help="maximum number of pairs to compare (default: 200)")
    command.add_argument("--seed", type=int, default=0, help="seed of pairs, order and sides (default: 0)")
    add_server_options(command, 8710)
    command.add_argument("--results", action="store_true", help="print the results and exit")
    command.add_argument("--export", type=Path, metavar="DIR", help="write ratings, pairs and clips to DIR and exit")


def _annotate(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.annotate import serve

    return serve.annotate(options)
