"""``douga run``, ``init``, ``finetune`` and ``config``. Parsing imports no torch, no rich and no Ray."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.candidate_set.rows import SET
from common.config import RunConfig, load_config, may_change_text
from common.data.ray_jobs import check_sent
from common.errors import ConfigError
from deploy.cli.flags import FILL, add_command, describe_keys
from deploy.cli.plan import GPU_HELP, gpu_named
from deploy.run_dir import layout
from deploy.run_dir.layout import TOON
from deploy.run_dir.signals import stop_on_signals
from deploy.runtime.messages import Outcome

EXAMPLES = f"""\
examples:
  douga run                                   align the embedded toon model on this machine
  douga run --verify                          the same; exit code 1 if the verdict on held-out prompts is negative
  douga run --name mine --learner.lr 1e-5     set any key; in flags - and _ are interchangeable
  douga run my.toml --steps 200               read a configuration file; flags override it
  douga run runs/mine/config.toml             resume an interrupted run
  douga run my.toml --pairs rated.jsonl       train on human preference pairs (docs/annotate.md)

  All files of a run are written to its folder, runs/NAME. The same command resumes the run; for a finished run it
  prints the result. These keys may change on resume (model.path: to another copy of the same model):
{FILL.fill(may_change_text(RunConfig()))}
"""
FINETUNE = """\
Reads your own clips and trains on them with the diffusion loss, conditioned on caption and clean first frame (the first
stage of HuViDPO). This is a run with algorithm.name = sft: the same command resumes it, and evaluate, report and export
work on it. CLIPS has 8 to 16 clips, each NAME.mp4 with a NAME.txt.

examples:
  douga finetune clips deploy/launch/configs/huvidpo-stage1.toml --prompts smile.jsonl
  douga export huvidpo-stage1 --out tuned                         export a pipeline folder
  douga run deploy/launch/configs/huvidpo-stage2.toml --pairs rated/ratings.jsonl --model.path tuned
"""


INIT = """\
Reads the model folder and writes a run.toml that fits it: clip size, frame rate, dtype, scheduler, LoRA, and with a
known GPU the memory settings. Every setting has a comment. Also writes prompts.jsonl with sample prompts and, for an
image-to-video model, two placeholder pictures, so that the run works at once. Existing files are never overwritten.

examples:
  douga init mine --model /models/CogVideoX-5b-I2V
  douga init mine --model /models/CogVideoX-5b-I2V --gpu RTX4090-24GB    for a machine with this GPU
  douga run mine/run.toml                                                then edit the prompts and the reward
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    command = add_command(
        commands,
        "run",
        _run,
        "start or resume a run (the main command)",
        takes_keys=True,
        usage="douga run [CONFIG.toml] [--KEY VALUE ...]",
        late_epilog=lambda: f"{EXAMPLES}\n{describe_keys()}",
    )
    finetune = add_command(
        commands, "finetune", _finetune, "fine-tune on a few clips with the diffusion loss", FINETUNE, takes_keys=True
    )
    finetune.add_argument("clips", type=Path, metavar="CLIPS", help="folder of mp4 files, each with a NAME.txt")
    config_help = "configuration file (default: the toon run; with --pairs it has to be given)"
    command.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help=config_help)
    finetune.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="configuration file; required")
    init = add_command(commands, "init", _init, "write a configuration that fits your model", INIT)
    init.add_argument("folder", type=Path, metavar="DIR", help="folder to write to")
    init.add_argument("--model", required=True, metavar="PATH", help="CogVideoX pipeline folder")
    init.add_argument("--gpu", help=f"{GPU_HELP} (default: the GPU of this machine, or the CPU)")
    add_command(commands, "config", _config, "list every configuration key with its type, default and meaning")


def _config(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    print(describe_keys())
    return 0


def _init(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    import torch

    from common.models.cogvideox import open_model
    from common.models.usual import usual_settings
    from deploy.planning.memory import gpu_of
    from deploy.planning.starter import CONFIG, PICTURES, PROMPTS, write_starter

    if options.model == "toon":
        raise ConfigError("--model toon: the embedded model has a configuration; douga run uses it")
    seen = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    gpu = gpu_named("--gpu", options.gpu) if options.gpu else gpu_of(seen)
    model = open_model(options.model)
    usual = usual_settings(model, "cuda:0" if gpu or seen else "cpu")
    for line in write_starter(options.folder, model, usual, gpu):
        print(f"douga: {line}", file=sys.stderr)
    where = gpu.name if gpu else seen or "the CPU"
    size = f"{usual.frames} frames of {usual.height}x{usual.width} at {usual.fps} fps"
    print(f"{options.folder / CONFIG}: {size}, {usual.dtype}, LoRA, for {where}")
    pictures = f" and {options.folder / PICTURES}" if model.image_conditioned else ""
    print(f"{options.folder / PROMPTS}{pictures}: samples; replace them by yours")
    print("next:", shlex.join(["douga", "run", str(options.folder / CONFIG)]))
    return 0


def _finetune(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    if not options.clips.is_dir():
        raise ConfigError(f"{options.clips}: no such folder of clips")
    own = {"algorithm.name": "sft", "sampler.candidates": "1", "pairs": str(options.clips)}
    return start(load_config(_config_of(options, "finetune", "huvidpo-stage1"), own | dict(flags)))


def _run(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    if options.config is not None:
        check_sent("CONFIG.toml", options.config)
    if flags.get("pairs"):
        return start(load_config(_config_of(options, "--pairs", "huvidpo-stage2"), flags))
    check_toon_defaults(options.config, flags)
    return start(load_config(options.config or TOON, flags))


def check_toon_defaults(file: Path | None, flags: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if another model than toon would get its default configuration, without a `file`."""
    model = flags.get("model.path", "toon")
    if file is None and model != "toon":
        raise ConfigError(
            f"--model.path {model}: needs a CONFIG.toml, because the default one is for the toon model; to write "
            f"one: douga init my-run --model {model}"
        )


def _config_of(options: argparse.Namespace, what: str, example: str) -> Path:
    """The given configuration file, for clips of the user's own: the toon run's settings would be wrong for them."""
    if options.config is None:
        file = TOON.with_name(f"{example}.toml")
        raise ConfigError(
            f"{what}: needs a CONFIG.toml, because the default one is for the toon model; "
            f"write one with douga init DIR --model PATH, or copy {file}"
        )
    return options.config


def start(config: RunConfig) -> int:
    """Starts or resumes the run. Returns the exit code: 0 finished, 1 `verify` failed, 130 interrupted."""
    before = layout.finished_result(config)
    if before is not None:
        more = "--count to collect more" if config.collect.prompts else "--steps to train further"
        print(f"{config.folder}: already finished; raise {more}, or start another run with --name")
        return _conclude(config, before)
    layout.check_unused(config.folder)  # before Ray and the model are started
    outcome = execute(config)
    if outcome.result is None:
        where = "" if config.collect.prompts else f" after step {outcome.step} of {config.steps}"
        print(f"stopped{where}; nothing is lost. Resume with:", file=sys.stderr)
        print(f"  {layout.resume_command(config.folder)}", file=sys.stderr)
        return 130
    return _conclude(config, outcome.result)


def execute(config: RunConfig) -> Outcome:
    """Runs from the state of the run folder to the end, or to a signal, with a progress display."""
    from deploy.run_dir.progress import showing

    with stop_on_signals() as stop, showing() as progress:
        return _mode(config).run(config, stop=stop, progress=progress)


def _mode(config: RunConfig) -> Any:
    """Returns the module that executes runs of this mode. Raises `ConfigError` if Ray is not installed."""
    if config.mode == "serial":
        from deploy.runtime import serial

        return serial
    try:
        from deploy.runtime import driver
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mode = 'cluster': needs the package {error.name}, which is not installed; mode = 'serial' does not"
        ) from None
    return driver


def _conclude(config: RunConfig, result: Mapping[str, Any]) -> int:
    from rich.console import Console

    from deploy.results import comparison
    from deploy.run_dir import throughput

    console = Console()
    if config.collect.prompts:
        print(f"{result['candidates']} candidates of {result['collected']} prompts: {config.folder / SET}")
        return 0
    if config.simulate:
        for line in throughput.lines(result["throughput"]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0
    if not config.evaluation.prompts:
        print(f"{config.folder}: {result['step']} steps; without a comparison, because evaluation.prompts = 0")
        return 0
    if result["learned"]:
        console.print(comparison.table(result))
    console.print(result["verdict"]["message"], markup=False, highlight=False, soft_wrap=not result["learned"])
    console.print(f"report: {config.folder / layout.REPORT}", markup=False, highlight=False, soft_wrap=True)
    return 1 if config.verify and not result["verdict"]["passed"] else 0
