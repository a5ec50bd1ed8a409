"""``douga evaluate``, ``report``, ``export`` and ``recover``. Parsing imports no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import BAD_INPUT, ConfigError
from deploy.cli.flags import RUN, add_command
from deploy.evaluation import FORMATS
from deploy.run_dir import layout

EVALUATE = """\
Samples the same prompts with the same seeds with every MODEL, scores all clips with the configured rewards and judges,
and prints one table: means, changes from the first model (or --against) with 95 % intervals over prompts, and shares of
prompts won, tied and lost. Writes clips and scores as candidate sets, evaluation.json and evaluation.html (clips side
by side, sorted by gain and loss) to --out. The same command resumes an interrupted evaluation. It runs where
`douga run` does: in one process, or on a Ray cluster.

MODEL is a run (its newest weights), RUN@VERSION, a pipeline folder, 'toon', or a candidate set. LABEL=PLACE names it.
A run alone is compared with its base model.

examples:
  douga evaluate runs/mine                                        base and newest weights, on held-out prompts
  douga evaluate base=toon gapo=runs/gapo dpo=runs/dpo@30 --count 200
  douga evaluate /models/CogVideoX-5b-I2V runs/mine --config my.toml --prompts test.jsonl --split all --out runs/test
  douga evaluate runs/mine --format latex --export-vbench vb
  douga evaluate runs/mine --vbench-results evaluation_results/*_eval_results.json

Any configuration key can be set; all models are sampled with the configuration of --config, else of the first run.
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
alpha / rank is multiplied into B, so tools that add B A to the weights are right without reading the metadata.
learner.train = full: writes a pipeline folder, for CogVideoXImageToVideoPipeline.from_pretrained(DIR). It is a complete
copy: the base model's files are neither linked nor changed.
docs/models.md has a script that samples a clip of `douga sample` with diffusers.

examples:
  douga export runs/mine --out aligned              the newest version
  douga export mine --out halfway --version 30      an earlier one that is still in runs/mine/weights
  douga sample aligned --prompts test.jsonl         sample from an exported pipeline
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
    summary = "compare any number of models on the same prompts and seeds"
    evaluate = add_command(commands, "evaluate", _evaluate, summary, EVALUATE, takes_keys=True)
    evaluate.add_argument("models", nargs="+", metavar="MODEL", help="[LABEL=]RUN, RUN@VERSION, FOLDER, toon or SET")
    evaluate.add_argument("--against", metavar="LABEL", help="the model to compare with (default: the first)")
    evaluate.add_argument("--config", type=Path, metavar="CONFIG.toml", help="how to sample and score")
    evaluate.add_argument("--count", type=int, help="number of prompts (default: evaluation.prompts)")
    evaluate.add_argument(
        "--split",
        choices=("heldout", "train", "all"),
        default="heldout",
        help="prompts: held-out ones, training prompts, or all rows of the file in order (default: heldout)",
    )
    evaluate.add_argument("--clips", type=int, default=1, help="clips per prompt (default: 1)")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: runs/LABEL-evaluation)")
    evaluate.add_argument("--format", choices=FORMATS, default="text", help="of the printed table (default: text)")
    evaluate.add_argument(
        "--controls",
        type=int,
        default=8,
        help="clips that judges compare with a frozen and a flickering one (default: 8)",
    )
    evaluate.add_argument("--export-vbench", type=Path, metavar="DIR", help="also write the clips as VBench reads them")
    evaluate.add_argument(
        "--vbench-results",
        nargs="+",
        default=(),
        metavar="FILE",
        help="results that VBench wrote for exported clips (*_eval_results.json): adds them to the table; LABEL=FILE "
        "if the folder with the clips has not the model's name",
    )
    summary = "write a run's weights for diffusers: a LoRA file or a whole pipeline"
    export = add_command(commands, "export", _export, summary, EXPORT)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    export.add_argument("--version", type=int, help="weight version (default: the newest; 0: the base model)")
    recover = add_command(commands, "recover", _recover, "restore a damaged ledger from a snapshot", RECOVER)
    report = add_command(commands, "report", _report, "write a finished run's report.html again", REPORT)
    for command in (export, recover, report):
        command.add_argument("run", help=RUN)


@contextmanager
def _advising_out() -> Iterator[None]:
    """Errors of a run folder advise another --name. Here --out is the option that says where the folders are."""
    try:
        yield
    except BAD_INPUT as error:
        words = str(error)
        said = re.sub(r"choose another (--root or )?--name", "choose another --out", words)
        if said == words:
            raise
        raise ConfigError(said) from error


def _evaluate(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.cli.run import execute
    from deploy.evaluation.models import Request, models_of
    from deploy.evaluation.report import check_scored, evaluate

    for name in ("count", "clips"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    out = options.out or Path("runs") / f"{Path(options.models[-1].rpartition('=')[2]).name}-evaluation"
    request = Request(options.models, out, options.config, flags, options.count, options.split, options.clips)
    models = models_of(request)
    against = options.against or models[0].label
    if against not in [model.label for model in models]:
        raise ConfigError(f"--against {against}: allowed are {', '.join(model.label for model in models)}")
    for model in models:
        with _advising_out():
            if model.config is None or layout.is_collected(model.config):
                continue
            check_scored(model.config, options.export_vbench, options.vbench_results)
            print(f"{model.label}: sampling", file=sys.stderr)
            if execute(model.config).result is None:
                print("stopped; nothing is lost: the same command resumes the evaluation", file=sys.stderr)
                return 130
    return evaluate(
        models, against, out, options.format, options.controls, options.export_vbench, options.vbench_results
    )


def _export(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from common.weights.store import WeightStore
    from deploy.results import export
    from deploy.run_dir.source import chosen_version, find_run_with_model

    folder, config = find_run_with_model(options.run)
    store = WeightStore(folder / "weights")
    version = chosen_version(store, config, options.version)
    code = export.export(config, store, version, options.out)
    size = f"{export.size_of(options.out) / 1e6:,.1f} MB"
    print(f"{folder}: exported version {version} to {options.out} ({size}); load it with diffusers:\n{code}")
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
    prompts = open_inputs(config, lambda line: None)  # the run itself says what it thinks of its input
    done = recovery.recover(folder, config, prompts, print)
    print("\n".join(recovery.lines(folder, done)))
    return 0
