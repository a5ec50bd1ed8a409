"""``douga collect`` and ``candidates``: make, describe, check and merge candidate sets. Parsing imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import load_config
from common.errors import ConfigError
from deploy.cli.flags import add_command
from deploy.run_dir.layout import CONFIG, TOON

COLLECT = """\
Samples sampler.candidates clips of every training prompt with one set of weights, scores them, and keeps all of them:
mp4 files, latents, encoded prompts, seeds and raw scores, in runs/NAME/candidates. `douga run --candidates` trains any
algorithm on them under any reward weights, without sampling again. It runs where `douga run` does: in one process, or
on a Ray cluster with mode = "cluster". The same command resumes it; a larger --count adds prompts.

examples:
  douga collect --count 200 --name base-200              200 toon prompts, the embedded model: runs/base-200
  douga collect my.toml                                  every training prompt of the file that my.toml names
  douga collect runs/mine --version 5 --name mine-v5     with the weights and the configuration of a run
  douga run my.toml --candidates runs/base-200 --algorithm.name dpo

Any configuration key can be set. The default of --name is the name in the configuration with -candidates added.
"""
CANDIDATES = """\
examples:
  douga candidates show runs/base-200                    counts, and mean and spread of every score
  douga candidates check runs/base-200                   read every file and compare it with its digest
  douga candidates merge all runs/base-200 runs/other    add the candidates of two sets to the folder 'all'
  douga score runs/base-200 --reward.judges.vs.kind videoscore --reward.judges.vs.path /models/vs

SET is the folder of a set, or the run that collected it. Files: docs/candidates.md
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    summary = "sample and score N candidates of every prompt, and keep all of them"
    collect = add_command(commands, "collect", _collect, summary, COLLECT, takes_keys=True)
    collect.add_argument(
        "source", nargs="?", type=Path, metavar="CONFIG.toml|RUN", help="configuration file (default: toon), or a run"
    )
    collect.add_argument("--count", type=int, help="number of prompts (default: all training prompts of the file)")
    collect.add_argument("--version", type=int, help="weight version of RUN (default: the newest)")
    summary = "describe, check and merge candidate sets"
    group = commands.add_parser("candidates", help=summary, description=summary, epilog=CANDIDATES)
    kinds = group.add_subparsers(dest="kind", metavar="KIND")
    for name, act, text in (
        ("show", _show, "print counts and scores"),
        ("check", _check, "read every file and compare it with its digest; exit code 1 if one differs"),
    ):
        add_command(kinds, name, act, text).add_argument("set", type=Path, metavar="SET")
    merge = add_command(kinds, "merge", _merge, "add the candidates of sets to a set; the same command resumes")
    merge.add_argument("out", type=Path, metavar="OUT", help="folder of the set to add to; created if missing")
    merge.add_argument("sets", type=Path, nargs="+", metavar="SET")


def _collect(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.cli.run import check_toon_defaults, start
    from deploy.run_dir.source import collect_keys
    from deploy.runtime.factories import open_training_prompts

    check_toon_defaults(options.source, flags)
    source, own = options.source or TOON, {}
    if source.suffix != ".toml":
        folder, _, own = collect_keys(source, options.version)
        source = folder / CONFIG
    elif options.version is not None:
        raise ConfigError(f"--version {options.version}: {source} is a configuration file, not a run")
    own |= {"pairs": "", "candidates": "", "verify": "false"} | dict(flags)
    if "name" not in flags:
        own["name"] = f"{load_config(source, flags).name}-candidates"
    count, config = options.count, load_config(source, own)
    if count is None and config.collect.split != "train":
        raise ConfigError(f"collect.split = {config.collect.split!r}: give the number of prompts with --count")
    if count is None:
        count = open_training_prompts(config).training_prompts
    if count is None:
        raise ConfigError("prompts = 'toon': there is no end of them; give --count")
    return start(load_config(source, own | {"collect.prompts": str(count)}))


def _show(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from rich.console import Console

    from common.candidate_set.folder import read_set
    from deploy.results.candidates import summary

    Console().print(summary(read_set(options.set)))
    return 0


def _check(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from common.candidate_set.folder import read_set

    found = read_set(options.set)
    faults = list(found.faults())
    for fault in faults:
        print(f"douga: {fault}", file=sys.stderr)
    print(f"{found.folder}: {len(found.rows)} candidates, {len(faults)} damaged")
    return 1 if faults else 0


def _merge(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from common.candidate_set.merge import merge

    added = merge(options.out, options.sets, print)
    print(f"{options.out}: {added} candidates added")
    return 0
