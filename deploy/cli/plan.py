"""``douga plan``: prints the plan that `deploy/planning/plan.py` computes. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig, load_config
from common.errors import ConfigError
from common.models.fingerprint import cached_snapshot
from common.toon import WEIGHTS
from deploy.cli.flags import add_command
from deploy.planning import forecast, split
from deploy.planning.forecast import Cluster
from deploy.planning.memory import GIGA, GPUS, Gpu, Need, gpu_of
from deploy.planning.model_sizes import ModelSizes, family_sizes, folder_sizes
from deploy.planning.plan import Plan, clips_per_step, plan

LARGEST = 1e5  # of a number that describes the cluster
GPU_HELP = f"{', '.join(GPUS)}, also in short (A100), or NAME:GB:TFLOPS, dense bfloat16"
PLAN = """\
Reads a configuration and the config files in its model.path, and loads no model. Prints the memory of each role term by
term, the time of a clip and of a step, how many samplers keep the learner busy, and the disk usage. If a role does not
fit into its GPU, the exit code is 2 and the error names keys that save enough memory. Times assume that the GPU reaches
the share --mfu of its peak; measure it on your GPUs and pass it. If the model folder is on another machine, give the
published model with --family.

The pace of a cluster run is simulated with the rules of the exchange: steps an hour, who waits for what, whether a
larger exchange.max_lag would help, how many rewarders are needed, and the minutes that a push takes. With --gpus N the
best splits of N GPUs over learner, rewarders and samplers are searched.

examples:
  douga plan deploy/launch/configs/a800-online.toml --family 5b-i2v --gpu A800-80GB
  douga plan my.toml --sampler-gpu RTX4090-24GB --learner-gpu H100-80GB --mfu 0.35
  douga plan my.toml --gpus 64 --score-seconds 3                  how to split 64 GPUs
  douga plan my.toml --gpu H100-80GB --learner.micro-batch 2      with a configuration key changed, as in `douga run`
"""


def add(commands: Any) -> None:
    """Adds the command of this file."""
    summary = "estimate GPU memory, time and disk before renting GPUs"
    command = add_command(commands, "plan", _plan, summary, PLAN, takes_keys=True)
    command.add_argument("config", type=Path, metavar="CONFIG.toml", help="configuration of the run")
    command.add_argument("--family", help="2b, 5b-i2v or 1.5-5b-i2v, instead of the files in model.path")
    command.add_argument("--gpu", default="A800-80GB", help=f"{GPU_HELP} (default: A800-80GB)")
    command.add_argument("--sampler-gpu", help="GPU of the samplers (default: --gpu)")
    command.add_argument("--learner-gpu", help="GPU of the learner (default: --gpu)")
    command.add_argument("--mfu", type=float, default=0.4, help="model FLOPs utilisation, 0..1 (default: 0.4)")
    command.add_argument("--gpus", type=int, metavar="N", help="find the best split of N GPUs over the roles")
    usual = Cluster()
    for flag, value, what in (
        ("--score-seconds", usual.score_seconds, "seconds to score a clip"),
        ("--gigabits", usual.gigabits, "Gbit/s out of the hub's node"),
        ("--tail", usual.tail, "standard deviation of the logarithm of every duration"),
    ):
        command.add_argument(flag, type=float, default=value, help=f"{what} (default: {value:g})")


def _plan(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    config = load_config(options.config, flags)
    gpus = {role: _gpu(options, role) for role in ("sampler", "rewarder", "learner")}
    sizes, cluster = _sizes(config, options.family), _cluster(options)
    if options.gpus is not None:
        if options.gpus < 2 or config.mode != "cluster" or config.offline:
            raise ConfigError(f"--gpus {options.gpus}: needs 2 or more, and a cluster run that samples")
        print("\n".join(split.lines(split.best_splits(config, sizes, gpus, options.mfu, options.gpus, cluster),
                                    options.gpus)))  # fmt: skip
        return 0
    made = plan(config, sizes, gpus, options.mfu)
    shown = lines(made)
    if config.mode == "cluster" and not config.offline:
        shown += ["", *forecast.lines(forecast.forecast(made, cluster), cluster, config)]
    print("\n".join(shown))
    return 0


def _cluster(options: argparse.Namespace) -> Cluster:
    for flag, value, least in (
        ("--score-seconds", options.score_seconds, 0.0),
        ("--gigabits", options.gigabits, 1e-3),
        ("--tail", options.tail, 0.0),
    ):
        if not least <= value <= LARGEST:
            raise ConfigError(f"{flag} {value:g}: at least {least:g} and at most {LARGEST:g}")
    return Cluster(options.score_seconds, options.gigabits, options.tail)


def _sizes(config: RunConfig, family: str | None) -> ModelSizes:
    if family is not None:
        return family_sizes(family)
    path = config.model.path
    return folder_sizes(WEIGHTS / "pipeline" if path == "toon" else cached_snapshot(path) or Path(path))


def _gpu(options: argparse.Namespace, role: str) -> Gpu:
    own = {"sampler": options.sampler_gpu, "learner": options.learner_gpu}.get(role)
    flag, name = (f"--{role}-gpu", own) if own else ("--gpu", options.gpu)
    return gpu_named(flag, name)


def gpu_named(flag: str, name: str) -> Gpu:
    """Returns a GPU by its name (`gpu_of`). Raises `ConfigError`, beginning with `flag`, if it is not known."""
    gpu = gpu_of(name)
    if gpu is None:
        raise ConfigError(f"{flag} {name}: allowed are {', '.join(GPUS)}, and NAME:GB:TFLOPS for any other GPU")
    return gpu


def lines(made: Plan) -> list[str]:
    """Returns the plan as lines of text."""
    sizes, size = made.sizes, made.config.model
    head = [
        f"{sizes.name}: transformer {sizes.transformer_parameters / GIGA:.2f}e9 parameters, T5 "
        f"{sizes.text_parameters / GIGA:.2f}e9, VAE {sizes.vae_parameters / GIGA:.2f}e9; {size.dtype}",
        f"a clip: {size.frames} frames of {size.height}x{size.width}, latents {list(made.shape)}, {made.tokens} tokens",
        "",
        "memory, GB (10^9 bytes); phases do not overlap, so only the largest counts",
    ]
    for need in made.needs:
        head += _need_lines(need)
    return [*head, "", *_pace_lines(made), "", *_disk_lines(made)]


def _need_lines(need: Need) -> list[str]:
    share = f"{need.share:g} of " if need.share < 1 else ""
    title = f"  {need.role} x {need.workers} on {share}{need.gpu.name}"
    shown = [f"{title}: {need.total / GIGA:.1f} of {need.budget / GIGA:.1f}"]
    shown += [f"    {held / GIGA:6.2f}  {name}" for name, held in need.resident.items() if held]
    largest = max(need.phases, key=lambda name: need.phases[name], default="")
    shown += [
        f"    {held / GIGA:6.2f}  {name}{'' if name == largest else ' (not at the same time)'}"
        for name, held in need.phases.items()
    ]
    if need.host:
        shown.append(f"    {need.host / GIGA:6.2f}  host memory")
    return shown


def _pace_lines(made: Plan) -> list[str]:
    config, pace = made.config, made.pace
    clips = clips_per_step(config)
    slow = "" if config.model.dtype == "bfloat16" else "; at bfloat16's peak; float32 takes far longer"
    shown = [
        f"time, assuming MFU = {made.mfu:g} (--mfu; not measured), without scoring, pushes and loading{slow}",
        f"  {pace.clip:8.1f} s  a clip on a sampler",
        f"  {pace.step:8.1f} s  an optimizer step of {config.learner.batch_size} pairs ({clips} clips)",
    ]
    if pace.samplers_needed is not None:
        less = "the learner waits" if pace.samplers < pace.samplers_needed else "the samplers wait"
        note = "nobody waits" if pace.samplers == pace.samplers_needed else less
        shown.append(f"  {pace.samplers_needed:8d}    samplers keep the learner busy; with {pace.samplers} {note}")
    return [*shown, f"  {pace.total(config.steps, clips) / 3600:8.1f} h  {config.steps} steps"]


def _disk_lines(made: Plan) -> list[str]:
    disk, config = made.disk, made.config
    kept, key = config.keep_candidates_bytes, "keep_candidates_bytes"
    return [
        "the hub (no GPU): disk of its node, GB",
        f"  {disk.blobs / GIGA:8.1f}  blobs at most (exchange.max_bytes = {config.exchange.max_bytes / GIGA:.0f} GB)",
        *([f"  {kept / GIGA:8.1f}  kept candidates at most, {kept / disk.group:.0f} groups ({key})"] if kept else []),
        f"  {disk.checkpoints / GIGA:8.1f}  checkpoints ({config.learner.keep_checkpoints} kept, one being written)",
        f"  {disk.versions / GIGA:8.1f}  weight versions, including the base",
        f"hub traffic: {disk.group / GIGA:.3f} GB per group, {disk.push / GIGA:.3f} GB at most per push and node",
    ]
