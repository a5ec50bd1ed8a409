"""From candidate sets to the results of an evaluation: scores, table, evaluation.json, page, VBench export."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from common.candidate_set.folder import read_set
from common.config import RunConfig
from common.errors import ConfigError
from common.files import write_whole
from common.intervals import Interval
from deploy.evaluation.figures import ORACLE, Evaluation, MeasuredModel, compare, measure
from deploy.evaluation.models import EvaluatedModel
from deploy.evaluation.page import write_page
from deploy.evaluation.sets import check_metrics, compare_controls, measure_sets
from deploy.evaluation.tables import WRITTEN, notes, text_table
from deploy.evaluation.vbench import export_vbench
from deploy.evaluation.vbench_results import read_results
from deploy.guardrails.rules import REWARD
from deploy.results.candidates import score_set
from deploy.results.comparison import Compared, decide
from deploy.run_dir.layout import read_result
from deploy.run_dir.progress import showing

JSON = "evaluation.json"
SCORES = (
    "name a judge, such as --reward.judges.steady.kind temporal_flicker (docs/rewards.md), a metric "
    "(docs/evaluation.md), or let people compare the clips of a run: douga annotate RUN"
)


def evaluate(
    models: Sequence[EvaluatedModel],
    against: str,
    out: Path,
    form: str,
    controls: int,
    export: Path | None = None,
    results: Sequence[str] = (),
) -> int:
    """Measures and compares sampled models; prints the table and writes the results to `out`. Returns the exit code.

    Sets that lack scores of the configured rewards are scored first. `controls` clips of the first model are compared
    with frozen and flickering ones. `export` is a folder for VBench's clips, `results` are files that VBench wrote.
    """
    config = next((model.config for model in models if model.config is not None), None)
    if config is not None and not config.reward.empty:
        for model in models:
            score_set(config, model.folder, again=False, notify=_on_stderr)
    with showing() as progress:
        measured = [measure(model.label, read_set(model.folder), model.config or config, progress) for model in models]
        _name_differences(measured)
        if results:
            measured, lines = read_results(measured, results)
            for line in lines:
                _on_stderr(f"note: {line}")
        found = compare(measured, against, _refused(models))
        if config is not None:
            sets = measure_sets(measured, config, progress)
            found = replace(found, sets=sets, controls=compare_controls(measured[0], config, controls, progress))
    if not (found.figures or found.sets or export):
        raise ConfigError(f"{', '.join(found.labels)}: no score in common; {SCORES}")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / JSON, json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
    page = write_page(out, found, measured)
    _print(found, form)
    if export is not None:
        _on_stderr(f"{export_vbench(export, measured)} clips for VBench: {export}")
    _on_stderr(f"clips side by side: {page}")
    return 0


def check_scored(config: RunConfig, export: Path | None, results: Sequence[str]) -> None:
    """Raises `ConfigError`, before anything is sampled, if nothing would measure the clips of `config`."""
    check_metrics(config)
    from common.toon.oracle import oracle_applies  # noqa: PLC0415 - torch

    if config.reward.empty and not (config.evaluation.metrics or oracle_applies(config) or export or results):
        raise ConfigError(f"reward: no head and no judge scores the clips; {SCORES}")


def _refused(models: Sequence[EvaluatedModel]) -> dict[str, dict[str, str]]:
    """Label -> id of a prompt -> why the collection has no clip of it."""
    results = {model.label: read_result(model.config.folder) for model in models if model.config is not None}
    return {
        label: {one["id"]: one["reason"] for one in result.get("left_out", ())}
        for label, result in results.items()
        if result is not None
    }


def _name_differences(models: Sequence[MeasuredModel]) -> None:
    """Says which sets were made with another size or other sampler settings than the first one."""
    first = models[0].candidates.settings
    for model in models[1:]:
        try:
            model.candidates.settings.check_same(model.label, first)
        except ConfigError as error:
            _on_stderr(f"note: {error}")


def _print(found: Evaluation, form: str) -> None:
    if form == "json":
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    elif form in WRITTEN:
        print(WRITTEN[form](found))
    else:
        console = Console()
        console.print(text_table(found))
        for line in notes(found):
            console.print(line, markup=False, highlight=False)
        for line in verdicts(found):
            console.print(line, markup=False, highlight=False)


def verdicts(found: Evaluation) -> list[str]:
    """For each compared model whether its reward rose and the oracle held, if there is a common reward."""
    if REWARD not in found.figures:
        return []
    counted, prompts = found.counted[REWARD], len(found.prompts)
    left_out = [{"side": label, "id": name, "reason": why}
                for label, missing in found.left_out.items() for name, why in missing.items()]  # fmt: skip
    compared = Compared(found.asked, found.clips * counted // prompts, counted, left_out)
    lines = []
    for label in found.labels:
        if label != found.against:
            changes = {name: Interval(**row[label]["change"]) for name, row in found.figures.items()}
            oracle = {name.removeprefix(ORACLE): one for name, one in changes.items() if name.startswith(ORACLE)}
            lines.append(f"{label}: {decide(changes[REWARD], oracle, compared).message}")
    return lines


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr)
