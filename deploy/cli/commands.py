"""What the subcommands of `douga` do. Each takes the parsed options and the flags, returns an exit code."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from actors.ddim_inversion import InvertedSampler
from actors.prompts.source import open_prompts
from actors.sampler import Sampler
from common import feedback
from common.config import RunConfig, load_config
from common.data.video import contact_sheet, decode_clip
from common.errors import ConfigError, NotFoundError
from common.errors.disk import writing
from common.exchange import recovery, rules
from common.exchange.local import LocalExchange
from common.messages import Prompt, ScoreTask
from common.models.cogvideox import open_model
from common.models.fingerprint import check_same_model, model_parts
from common.roles import EVALUATING_ALIGNED, EVALUATING_BASE
from common.toon.prompts import encode_png
from common.weights.store import WeightStore
from deploy.results import comparison, export, report
from deploy.run_dir import layout
from deploy.run_dir.journal import RunJournal
from deploy.run_dir.jsonl import EVENTS, METRICS, JsonLines, read_json_lines
from deploy.run_dir.progress import showing
from deploy.run_dir.samples import SAMPLES, read_samples
from deploy.runtime import run_loop, serial
from deploy.runtime.evaluation import HeldOut
from deploy.runtime.factories import open_inputs
from deploy.runtime.oom import needed_by
from deploy.runtime.scratch import scratch
from learner import checkpoint
from rewarders.judges import open_rewards
from rewarders.rewarder import rewarder_for

SHEET = "sheet.png"
Options = argparse.Namespace
Flags = Mapping[str, Any]


# Clips.


def sample(options: Options, flags: Flags) -> int:
    """``douga sample``: mp4 files, samples.json, and all clips at a glance in sheet.png."""
    if options.count < 1:
        raise ConfigError(f"--count {options.count}: must be at least 1")
    deterministic = {"sampler.scheduler": "ddim"} if options.invert else {}
    config, weights, version = generator_of(options.source, deterministic | dict(flags), options.version)
    if weights is None and options.version is not None:
        raise ConfigError(f"--version {options.version}: {options.source!r} is a model, not a run")
    with needed_by("sampler", config):
        _make_samples(config, weights, version, options)
    return 0


def _make_samples(config: RunConfig, weights: WeightStore | None, version: int, options: Options) -> None:
    model = open_model(config.model.path)
    prompts = _prompts(config, model.image_conditioned, options.count)
    sampler = InvertedSampler(model, config, options.invert) if options.invert else Sampler(model, config)
    if weights is not None and version:
        sampler.load(*weights.load(version))
    options.out.mkdir(parents=True, exist_ok=True)
    records, clips = [], []
    for prompt in prompts:
        seed = rules.seed(config.seed, "sample", prompt.ordinal, 0)
        (made,) = sampler.sample(prompt, sampler.encode(prompt), [seed], [0])
        record = _keep_sample(options.out, prompt, made.clip) | {"seed": seed, "version": sampler.version}
        records.append(record)
        clips.append(decode_clip(made.clip))
        print(options.out / record["clip"], "-", prompt.text)
    contact_sheet(clips).save(options.out / SHEET)
    layout.write_whole(options.out / SAMPLES, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def generator_of(source: str, flags: Flags, version: int | None = None) -> tuple[RunConfig, WeightStore | None, int]:
    """Configuration, published weights and chosen version of a run; of a model folder, no weights and version 0."""
    config, weights = _source(source, flags)
    return config, weights, 0 if weights is None else _chosen(weights, config, version)


def _source(source: str, flags: Flags) -> tuple[RunConfig, WeightStore | None]:
    """The configuration and the published weights of a run, or those of a model folder."""
    if source == "toon":
        return load_config(layout.TOON, flags), None
    if (Path(source) / "model_index.json").is_file():
        return load_config(None, {"model.path": source} | dict(flags)), None
    try:
        layout.find_run(source)
    except NotFoundError:
        raise ConfigError(
            f"{source}: neither a run nor a pipeline folder (no config.toml, no model_index.json)"
        ) from None
    folder, _ = _modelled(source)
    return load_config(folder / layout.CONFIG, flags), WeightStore(folder / "weights")


def _prompts(config: RunConfig, needs_image: bool, count: int) -> list[Prompt]:
    source = open_prompts(config.prompts, config.seed, needs_image)
    if config.prompts == "toon":
        return source.heldout(count, config.seed)
    return [source(ordinal) for ordinal in range(count)]


def _keep_sample(folder: Path, prompt: Prompt, clip: bytes) -> dict[str, Any]:
    name = f"{prompt.ordinal:04d}"
    (folder / f"{name}.mp4").write_bytes(clip)
    record = {"clip": f"{name}.mp4", "id": prompt.id, "text": prompt.text, "character": prompt.character}
    if prompt.image is None:
        return record
    (folder / f"{name}.png").write_bytes(prompt.image)
    return record | {"image": f"{name}.png"}


def score(options: Options, flags: Flags) -> int:
    """``douga score``: every score of the configured rewards, 0..100, and the mean that makes pairs."""
    config = load_config(options.config, flags)
    tasks = [task for place in options.clips for task in _score_tasks(place, options)]
    rewarder = rewarder_for(open_rewards(config.reward, config.model.device), config.reward)
    counted = feedback.counted(config.reward, rewarder.dimensions)
    rows = []
    for task, one in zip(tasks, rewarder.score(tasks), strict=True):
        broken = next((name for name, value in one.values.items() if not math.isfinite(value)), None)
        if broken is None:
            mean = comparison.mean_reward(one.values, counted)
            rows.append({"clip": task.candidate_id, comparison.REWARD: mean, **one.values})
        else:
            why = one.problems.get(broken, "no finite score")
            print(f"douga: {task.candidate_id}: {broken}: {why}; left out", file=sys.stderr)
    if not rows:
        raise ConfigError(f"none of {len(tasks)} clips could be scored")
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        Console().print(_score_table(rows))
    return 0


def _score_tasks(place: Path, options: Options) -> list[ScoreTask]:
    """The clips of a folder with a samples.json, or one mp4 file with the caption of the command line."""
    if place.is_dir():
        return [_sample_task(place, record) for record in read_samples(place)]
    clip = _bytes(place)
    if not options.text:
        raise ConfigError(f"{place}: which caption? give --text, or a folder with a {SAMPLES}")
    image = _bytes(options.image) if options.image else encode_png(_frames(place, clip)[0])
    return [ScoreTask(str(place), Prompt(0, place.stem, options.text, image), clip)]


def _sample_task(folder: Path, record: Mapping[str, Any]) -> ScoreTask:
    path = folder / record["clip"]
    clip = _bytes(path)
    image = _bytes(folder / record["image"]) if "image" in record else encode_png(_frames(path, clip)[0])
    prompt = Prompt(0, record.get("id", path.stem), record["text"], image, character=record.get("character"))
    return ScoreTask(str(path), prompt, clip)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _frames(path: Path, clip: bytes) -> np.ndarray:
    try:
        return decode_clip(clip)
    except ValueError as error:
        raise ConfigError(f"{path}: not a readable video: {error}") from None


def _score_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    grid = Table(title="scores, 0..100")
    names = [name for name in rows[0] if name != "clip"]
    grid.add_column("clip")
    for name in names:
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(row["clip"], *(f"{row[name]:.2f}" for name in names))
    if len(rows) > 1:
        grid.add_section()
        grid.add_row("mean", *(f"{np.mean([row[name] for row in rows]):.2f}" for name in names))
    return grid


# Runs.


def _modelled(run: str) -> tuple[Path, RunConfig]:
    """`run_folder.find_run`, for what needs a model's clips."""
    folder, config = layout.find_run(run)
    if config.simulate:
        raise ConfigError(f"{folder}: a simulated run has no clips and no model's weights; only `douga run` prints it")
    return folder, config


def evaluate_run(options: Options, flags: Flags) -> int:
    """``douga evaluate``: the held-out comparison again, in a scratch exchange; the run itself is only read."""
    folder, config = _modelled(options.run)
    if options.prompts is not None:
        config = load_config(folder / layout.CONFIG, {"evaluation.prompts": options.prompts})
    store = WeightStore(folder / "weights")
    version = _chosen(store, config, options.version)
    roles = serial.gather(config)
    manifest = store.manifest(version)
    with ExitStack() as stack:
        aside = stack.enter_context(scratch("evaluate"))
        progress = stack.enter_context(showing())
        exchange = LocalExchange(aside, config, roles.prompts)
        journal = stack.enter_context(RunJournal(aside, dict))
        parts = (config, roles.prompts, roles.sampler, roles.rewarder, exchange, store, journal, progress)
        heldout = HeldOut(*parts, between=lambda: None)
        try:
            base, _ = heldout.evaluate(run_loop.BASE, EVALUATING_BASE)
            if version != run_loop.BASE:
                exchange.announce(manifest)
            aligned, _ = heldout.evaluate(version, EVALUATING_ALIGNED)
        finally:
            exchange.close()
    result = comparison.conclude(comparison.by_prompt(base, aligned, config))
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        Console().print(comparison.table(result, result["prompts"]))
        Console().print(result["verdict"]["words"], markup=False, highlight=False)
    return 0


def export_run(options: Options, flags: Flags) -> int:
    """``douga export``: one version for diffusers; says how to load it."""
    folder, config = _modelled(options.run)
    store = WeightStore(folder / "weights")
    version = _chosen(store, config, options.version)
    how = export.export(config, store, version, options.out)
    print(f"{folder}: version {version} is in {options.out}; with diffusers:\n{how}")
    return 0


def recover_run(options: Options, flags: Flags) -> int:
    """``douga recover``: a mended snapshot in the place of a damaged ledger; says what is lost."""
    folder, config = layout.find_run(options.run)
    prompts = open_inputs(config)
    with layout.lock(folder):
        checkpoints = folder / "checkpoints"
        newest = max(WeightStore(folder / "weights").versions(), default=-1)
        done = recovery.recover(
            *(folder, config, prompts, checkpoint.steps(checkpoints), newest),
            before=partial(_set_newer_aside, checkpoints),
        )
        with JsonLines(folder / EVENTS) as events:
            events.write(event="recovered", step=done.step, damage=done.damage)
    last = max((record["step"] for record in read_json_lines(folder / METRICS)), default=done.step)
    taken = f"steps {done.step + 1} to {last} are taken again, and " if last > done.step else ""
    print(f"{done.damage}\n{folder}: restored the ledger's snapshot of step {done.step}; the run goes on from there")
    if done.aside is not None:
        print(f"the damaged ledger is kept as {done.aside}")
    print(f"lost: {taken}what was sampled and scored since is made again")
    print(f"lost: {done.again} groups that were under way ({done.dropped} clips of them) are sampled again, "
          f"{done.given_up} pairs or evaluations whose blobs are gone are given up")  # fmt: skip
    print(f"go on with: {layout.resume_command(folder)}")
    return 0


def _set_newer_aside(checkpoints: Path, step: int) -> None:
    """Checkpoints that no snapshot belongs to are of no use, but not ours to delete."""
    for newer in checkpoint.steps(checkpoints):
        if newer > step:
            place = checkpoint.place(checkpoints, newer)
            with writing(place):
                place.rename(place.with_name(f"unused-{place.name}"))
            print(f"no sound snapshot belongs to the checkpoint of step {newer}: it is kept as unused-{place.name}")


def _chosen(store: WeightStore, config: RunConfig, version: int | None) -> int:
    """A version of a run, by default its newest. `ConfigError` when it is not there, or of another base model."""
    versions = store.versions()
    if not versions:
        raise ConfigError(f"{store.folder}: no weights published yet")
    chosen = versions[-1] if version is None else version
    what = f"{store.folder}: version {chosen}"
    check_same_model(what, store.manifest(chosen).model, model_parts(config.model.path), config.model.path)
    return chosen


def write_report(options: Options, flags: Flags) -> int:
    """``douga report``."""
    folder, _ = _modelled(options.run)
    print(report.write(folder))
    return 0


# Data.


def from_videos(options: Options, flags: Flags) -> int:
    """``douga prompts from-videos``."""
    from actors.prompts import from_videos  # noqa: PLC0415

    captioner = None
    if options.captioner:
        from actors.prompts.captioner import Qwen2VLCaptioner  # noqa: PLC0415 - heavy, and only for this

        captioner = Qwen2VLCaptioner(options.captioner)
    print(from_videos.from_videos(options.folder, options.out, options.captions, captioner))
    return 0


def toon_build(options: Options, flags: Flags) -> int:
    """``douga toon build``."""
    from deploy.rewards import build_toon  # noqa: PLC0415 - brings the training code

    build_toon.build(options.work, options.out or build_toon.WEIGHTS, options.seed)
    return 0
