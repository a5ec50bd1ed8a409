"""``douga evaluate``, ``report``, ``export`` and ``recover``. Parsing imports no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import load_config
from deploy.cli.flags import RUN, add_command
from deploy.run_dir import layout

EVALUATE = """\
Reads the weights and config.toml of the run. Samples the held-out prompts with the base model and with the chosen
version, scores all clips and prints the comparison and its verdict. Writes nothing into the run folder.

examples:
  douga evaluate runs/mine                          the newest version, on the run's held-out prompts
  douga evaluate mine --prompts 200                 more prompts, for narrower intervals
  douga evaluate mine --version 30 --json           an earlier version that is still in runs/mine/weights
"""
REPORT = """\
Reads the run folder only (metrics, events, result, held-out clips) and writes RUN/report.html and RUN/report.png. No
model is loaded. `douga run` writes them when a run finishes; use this after an update of douga.

example:
  douga report runs/toon
"""
EXPORT = """\
Reads a weight version of the run and its base model.
learner.train = lora: writes DIR/pytorch_lora_weights.safetensors, for pipe.load_lora_weights(DIR). The scale
alpha / rank is in the file's metadata.
learner.train = full: writes a pipeline folder, for CogVideoXImageToVideoPipeline.from_pretrained(DIR). Do not edit its
files: the untrained parts are hard links to the base model's files if the file system supports them.
The pipeline squeezes an image of another aspect ratio than the clip, where douga crops it; so crop it yourself.

examples:
  douga export runs/mine --out aligned              the newest version
  douga export mine --out halfway --version 30      an earlier one that is still in runs/mine/weights
  douga sample aligned                              sample from an exported pipeline
"""
RECOVER = """\
A run takes a snapshot of its ledger at every checkpoint. If `douga run` reports that the ledger or blobs are damaged or
missing, this command restores the newest snapshot that belongs to a checkpoint. It keeps the damaged ledger under
another name and prints what is lost: steps after that checkpoint are repeated, and unfinished groups are sampled again.
Afterwards the same `douga run` command resumes the run. If the ledger is healthy or there is no such snapshot, the
command changes nothing and exits with code 2.

example:
  douga recover runs/toon
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    summary = "repeat a run's held-out comparison from its weights, without changing the run"
    evaluate = add_command(commands, "evaluate", _evaluate, summary, EVALUATE)
    evaluate.add_argument("--prompts", type=int, help="number of held-out prompts (default: the run's)")
    evaluate.add_argument("--version", type=int, help="weight version to compare with the base (default: the newest)")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    summary = "write a run's weights for diffusers: a LoRA file or a whole pipeline"
    export = add_command(commands, "export", _export, summary, EXPORT)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    export.add_argument("--version", type=int, help="weight version (default: the newest; 0: the base model)")
    recover = add_command(commands, "recover", _recover, "restore a damaged ledger from a snapshot", RECOVER)
    report = add_command(commands, "report", _report, "write a finished run's report.html again", REPORT)
    for command in (evaluate, export, recover, report):
        command.add_argument("run", help=RUN)


def _evaluate(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from rich.console import Console

    from deploy.results import comparison
    from deploy.run_dir.progress import showing
    from deploy.run_dir.source import find_run_with_model
    from deploy.runtime.evaluation import evaluate_again

    folder, config = find_run_with_model(options.run)
    if options.prompts is not None:
        config = load_config(folder / layout.CONFIG, {"evaluation.prompts": options.prompts})
    with showing() as progress:
        result = evaluate_again(folder, config, options.version, progress)
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        Console().print(comparison.table(result))
        Console().print(result["verdict"]["message"], markup=False, highlight=False)
    return 0


def _export(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from common.weights.store import WeightStore
    from deploy.results import export
    from deploy.run_dir.source import chosen_version, find_run_with_model

    folder, config = find_run_with_model(options.run)
    store = WeightStore(folder / "weights")
    version = chosen_version(store, config, options.version)
    code = export.export(config, store, version, options.out)
    print(f"{folder}: exported version {version} to {options.out}; load it with diffusers:\n{code}")
    return 0


def _report(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.results import report
    from deploy.run_dir.source import find_run_with_model

    folder, _ = find_run_with_model(options.run)
    print(report.write(folder))
    return 0


def _recover(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.run_dir import recovery
    from deploy.runtime.factories import open_inputs

    folder, config = layout.find_run(options.run)
    done = recovery.recover(folder, config, open_inputs(config), print)
    print("\n".join(recovery.lines(folder, done)))
    return 0
