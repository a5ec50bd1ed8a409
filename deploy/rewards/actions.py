"""The actions of ``douga reward build``, ``train`` and ``eval``. Each returns the exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from actors.prompts.vocabulary import open_vocabulary
from common.config import load_config
from common.data.ratings import dimensions, read_ratings
from common.errors import ConfigError
from common.stacked_table import StackedTable
from deploy.rewards import rating_set, tuning
from deploy.rewards.rating_set import Generator, Inputs
from deploy.run_dir.source import generator_of
from rewarders.head_files import load_heads, save_heads
from rewarders.judges.registry import open_judges
from rewarders.toon_heads.heads import HEADS
from rewarders.training import train
from rewarders.training.dataset import RatedDataset
from rewarders.training.encoders import EncoderTraining
from rewarders.training.pixel_baselines import SIGNALS
from rewarders.training.ranking_metrics import METRICS
from rewarders.training.report import report
from rewarders.training.split import split_rated, summary

NO_HEADS = "none"  # HEADS of `douga reward eval` for judges alone

Options = argparse.Namespace
Flags = Mapping[str, Any]
TOON_RATE = 4e-3  # learning rate of the toon heads, whose weights are all trained from scratch


def build_command(options: Options, flags: Flags) -> int:
    """Runs ``douga reward build`` with the parsed options and the configuration flags. Raises `ConfigError`."""
    if options.source == "toon":
        if flags:
            raise ConfigError(f"--{next(iter(flags))}: 'toon' takes no configuration keys")
        print(rating_set.build_toon(options.out, options.count, options.candidates, options.seed, print))
        return 0
    if options.clips < 1:
        raise ConfigError(f"--clips {options.clips}: must be at least 1")
    generators = [_generator(name.strip(), flags) for name in options.generators.split(",") if name.strip()]
    inputs = _inputs(options)
    file = rating_set.build_from_videos(inputs, options.out, generators, options.clips, options.seed, print)
    print(file)
    return 0


def _inputs(options: Options) -> Inputs:
    for name in ("captions", "captioner") if options.prompts else ():
        if getattr(options, name):
            raise ConfigError(f"--{name}: not with --prompts, which has the captions")
    if options.prompts and not options.prompts.is_file():
        raise ConfigError(f"--prompts {options.prompts}: no such file")
    captioner = None
    if options.captioner:
        from actors.prompts.captioner import Qwen2VLCaptioner  # noqa: PLC0415 - slow import, needed only here

        captioner = Qwen2VLCaptioner(options.captioner)
    vocabulary = open_vocabulary(options.actions) if options.actions else None
    videos = Path(options.source)
    return Inputs(videos, options.prompts, options.captions, captioner, options.foreign, vocabulary)


def _generator(source: str, flags: Flags) -> Generator:
    """Opens a generator: a model folder, a run's newest weights, or the embedded model."""
    config, weights, version = generator_of(source, flags)
    return Generator(Path(source).resolve().name, config, weights, version)


def train_command(options: Options, flags: Flags) -> int:
    """Runs ``douga reward train``. Raises `ConfigError` for bad options or too few ratings."""
    plan = _plan(options)
    table = read_ratings(options.ratings)
    print(table.summary())
    rated = RatedDataset(table, print)
    print("\n".join(summary(rated, split_rated(rated, plan.seed))))
    if isinstance(plan, EncoderTraining):
        tuning.tune(options, rated, plan)
    elif options.head == "toon":
        names = _chosen(options, dimensions(rated.rows))
        heads: list[Any] = [train.train_toon_head(rated, name, options.out, plan, print) for name in names]
        save_heads([*heads, *_rest(options.out, names)], options.out)
    else:
        save_heads([tuning.train_class(rated, options, plan, options.out)], options.out)
    print(f"{options.out}: trained; evaluate the heads with:")
    print(f"  douga reward eval {options.out} --ratings {options.ratings}")
    return 0


def _plan(options: Options) -> train.HeadTraining:
    """Returns the hyperparameters; what is not given has the default of the kind of training."""
    if options.start and not options.encoders:
        raise ConfigError("--start: only with --encoders")
    default = EncoderTraining() if options.encoders else train.HeadTraining()
    if options.head == "toon" and not options.encoders:
        default = replace(default, lr=TOON_RATE)
    given = {name: getattr(options, name) for name in (one.name for one in fields(default)) if name in options}
    plan = replace(default, **{name: value for name, value in given.items() if value is not None})
    for name in ("epochs", "batch", "patience", "frames"):
        if getattr(plan, name, 1) < 1:
            raise ConfigError(f"--{name} {getattr(plan, name)}: must be at least 1")
    if not 0 < plan.lr < 1:
        raise ConfigError(f"--lr {plan.lr:g}: must be above 0 and below 1")
    return plan


def _chosen(options: Options, rated: list[str]) -> list[str]:
    """Returns the dimensions to train toon heads for: those of --dimensions, else all that are rated."""
    asked = [name.strip() for name in (options.dimensions or "").split(",") if name.strip()]
    for name in asked:
        if name not in HEADS or name not in rated:
            raise ConfigError(
                f"--dimensions {name}: rated: {', '.join(rated)}; toon heads exist for {', '.join(HEADS)}"
            )
    names = asked or [name for name in HEADS if name in rated]
    if not names:
        raise ConfigError(f"{options.ratings}: rates {', '.join(rated)}; toon heads exist for {', '.join(HEADS)}")
    return names


def _rest(out: Path, trained: Collection[str]) -> list[Any]:
    """Returns the embedded heads of untrained dimensions, because a folder of toon heads must have all six."""
    missing = [name for name in HEADS if name not in trained and not (out / f"{name}.json").exists()]
    if missing:
        print(f"{out}: {', '.join(missing)} were not trained; these are copies of the embedded heads")
    return [head for head in load_heads("toon") if head.dimension in missing]


def eval_command(options: Options, flags: Flags) -> int:
    """Runs ``douga reward eval``. Raises `ConfigError` if no rated clip is left."""
    if options.resamples < 100:
        raise ConfigError(f"--resamples {options.resamples}: must be at least 100")
    heads = [] if options.heads == NO_HEADS else load_heads(options.heads, options.device)
    judges = open_judges(load_config(options.config, flags).reward.judges, options.device)
    if not heads and not judges:
        raise ConfigError(f"{NO_HEADS}: nothing to evaluate; name a judge with --reward.judges.NAME.kind or --config")
    table = read_ratings(options.ratings)
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    notes.print(table.summary(), markup=False)
    folder = None if options.heads in ("toon", NO_HEADS) else Path(options.heads)
    seen = {} if folder is None else {h.dimension: train.seen_in_training(folder, h.dimension) for h in heads}
    if heads and not any(seen.values()):
        notes.print(f"{options.heads}: has no record of its training clips; all rated clips are used", markup=False)
    said = partial(notes.print, markup=False)
    rated, frozen = RatedDataset(table, said), tuning.frozen_heads(heads, folder, options.device, said)
    found = report(heads, rated, seen, said, options.resamples, judges, frozen)
    found = {"heads": options.heads, **found}
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    console = Console()
    for name, section in found["dimensions"].items():
        console.print(_agreement_table(name, section))
        if section["calibration"]:
            console.print(_calibration_table(section))
        if len(section["by_source"]) > 1:
            console.print(_source_table(section))
    if left := _left_out(found["left_out"]):
        console.print(f"left out: {left}", markup=False, highlight=False)
    return 0


def _agreement_table(name: str, section: Mapping[str, Any]) -> StackedTable:
    rows: list[Sequence[str]] = []
    for judge, found in section["judges"].items():
        rows.append((judge, *_cells(found, "value")))
        if judge not in SIGNALS:
            rows += [("  95 % from", *_cells(found, "low")), ("  to", *_cells(found, "high"))]
    title = f"{name}: {section['clips']} clips of {section['prompts']} prompts"
    return StackedTable(title, ["judge", *(one.replace("Recall", "R") for one in METRICS)], rows, SIMPLE_HEAD)


def _cells(found: Mapping[str, Mapping[str, float | None]], what: str) -> list[str]:
    values = [found.get(metric, {}).get(what) for metric in METRICS]
    return ["–" if value is None else f"{value:.2f}" for value in values]


def _calibration_table(section: Mapping[str, Any]) -> Table:
    grid = Table(title="calibration: mean score and mean opinion, 0..100", box=SIMPLE_HEAD)
    for name in ("scores", "clips", "score", "opinion"):
        grid.add_column(name, justify="right")
    for one in section["calibration"]:
        cells = (f"{one['low']:.0f}..{one['high']:.0f}", str(one["clips"]))
        grid.add_row(*cells, f"{one['score']:.1f}", f"{one['opinion']:.1f}")
    return grid


def _source_table(section: Mapping[str, Any]) -> StackedTable:
    judges = list(next(iter(section["by_source"].values()))["SRCC"])
    rows = []
    for source, one in section["by_source"].items():
        values = ("–" if one["SRCC"][judge] is None else f"{one['SRCC'][judge]:.2f}" for judge in judges)
        rows.append((source, str(one["clips"]), *values))
    return StackedTable("SRCC within the clips of one source", ["source", "clips", *judges], rows, SIMPLE_HEAD)


def _left_out(left: Mapping[str, Any]) -> str:
    """Returns the numbers of excluded clips by reason, as a range if the dimensions differ; empty if there are none."""
    counts = {why: sorted(set(n.values())) if isinstance(n, dict) else [n] for why, n in left.items()}
    return ", ".join(f"{'..'.join(map(str, sorted({n[0], n[-1]})))} {why}" for why, n in counts.items() if n[-1])
