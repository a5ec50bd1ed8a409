"""``douga annotate``: the web page where people rate and compare clips. Parsing imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from deploy import web_server

ANNOTATE = """\
PLACE is a run (its held-out clips, base and aligned), a folder with a ratings.jsonl or a samples.json, or a folder of
mp4 files. The answers are kept in PLACE/annotations.sqlite; stop with Ctrl-C and start again whenever you like.

examples:
  douga annotate runs/toon                        rate and compare; open the address it prints
  douga annotate clips --rubric huvidpo           three questions instead of AnimeReward's six
  douga annotate clips --rubric mine.toml         questions of your own; docs/annotate.md shows the file
  douga annotate runs/toon --results              what the answers come to, as a table
  douga annotate clips --export rated             rated/ratings.jsonl and rated/pairs.jsonl, with the clips
  DOUGA_TOKEN=... douga annotate clips --host 10.0.0.5      for others; without a token on this machine alone
"""
FINETUNE = """\
HuViDPO's first stage: the diffusion loss on clips of your own, each under its caption and its clean first frame. A run
like all others (algorithm.name = sft): it can be interrupted, is compared with the base model, and is exported.

examples:
  douga finetune clips --steps 200 --learner.lr 1e-4              8 to 16 clips, each NAME.mp4 with a NAME.txt
  douga export finetune --out tuned                               a whole pipeline
  douga run --pairs rated/ratings.jsonl --model.path tuned --learner.train lora --algorithm.name human_pairs
"""
OWN = web_server.OPTIONS | {"rubric", "annotators", "pairs", "seed", "results", "export"}


def add(commands: Any, add_command: Callable[..., Any]) -> None:
    """Add the subcommand to the parser; `add_command` is `cli._add`."""
    words = "a web page where people rate and compare clips"
    command = add_command(commands, "annotate", _annotate, words, ANNOTATE)
    command.add_argument("place", type=Path, metavar="PLACE", help="run folder or its name under runs/, or a folder")
    command.add_argument("--rubric", default="anime", help="anime (default), huvidpo, or a TOML file")
    command.add_argument("--annotators", type=int, default=3, help="people who see each clip (default: 3)")
    command.add_argument("--pairs", type=int, default=200, help="pairs to compare at most (default: 200)")
    command.add_argument("--seed", type=int, default=0, help="of the pairs, of orders and sides (default: 0)")
    web_server.add_options(command, 8710)
    command.add_argument("--results", action="store_true", help="print the results and end")
    command.add_argument("--export", type=Path, metavar="DIR", help="write ratings, pairs and clips to DIR and end")


def _annotate(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.annotate import serve  # noqa: PLC0415
    from deploy.cli import run  # noqa: PLC0415 - FastAPI, only for this

    return run.or_failed(partial(serve.annotate, options))
