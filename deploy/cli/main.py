"""The command line. Parsing and help need no torch, so they answer at once; `deploy/cli/commands.py` does the work.

Exit codes: 0 done, 1 `--verify` failed, 2 bad input, 3 the run cannot go on (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

try:
    from common.config import keys, leaves, load_config
    from common.errors import BAD_INPUT, ConfigError
    from common.version import VERSION
    from deploy.cli import annotate, inspect, logs, monitor, rewards, serve_rewards
    from deploy.run_dir.layout import MEMORY, TOON
except ModuleNotFoundError as missing:
    # In a job of Ray a bare `python` is the one on the PATH that Ray was started with.
    words = f"{sys.executable} has no {missing.name}; name the project's own interpreter, .venv/bin/python, in full"
    print(f"douga: {words}", file=sys.stderr)
    sys.exit(2)

TRUE_WORDS = ("true", "false", "yes", "no", "on", "off", "1", "0")

EXAMPLES = f"""\
examples:
  douga run                                   align the embedded toon model on this machine
  douga run --verify                          ... and exit 1 unless held-out reward rose and the oracle held
  douga run --name mine --learner.lr 1e-5     change any key; names may be written with - or _
  douga run my.toml --steps 200               a configuration file, then flags on top
  douga run runs/mine/config.toml             go on with a run that was interrupted
  douga run --pairs rated/ratings.jsonl       train on pairs that people made: docs/annotate.md

  A run is a folder (runs/NAME). The same command again resumes it; a finished run prints its result.
  When a run is resumed, steps, verify, evaluation.*, guard.*, cluster.*, metrics.*, logs.* may change; model.path to
  another copy of the model; and what makes a run fit into less memory:
  {", ".join(MEMORY[:3])},
  {", ".join(MEMORY[3:])}.
"""


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake in one line, like all other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `douga`; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except BAD_INPUT as error:
        print(f"douga: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("douga: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    parser = build_parser()
    flags, rest = split_flags(words, _own_options(words))
    options = parser.parse_args(rest)
    if flags and not options.takes_keys:
        raise ConfigError(f"--{next(iter(flags))}: unknown option; see: douga {options.command} --help")
    return options.act(options, flags)


# The keys of the configuration as flags.


def split_flags(words: Sequence[str], own: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """Take ``--dotted.key value`` out of `words`; what is left (with the options in `own`) is argparse's.

    A switch (true or false) may stand alone. `ConfigError` for a key without value.
    """
    switches = {key.name for key in keys() if isinstance(key.default, bool)}
    flags: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in own or not name:
            rest.append(word)
        elif equals:
            flags[name] = value
        elif name.replace("-", "_") in switches:
            flags[name] = queue.pop(0) if queue and queue[0].lower() in TRUE_WORDS else "true"
        elif not queue or queue[0].startswith("--"):
            raise ConfigError(f"--{name}: a value is missing")
        else:
            flags[name] = queue.pop(0)
    return flags, rest


OWN = {
    "--version": frozenset({"version"}),
    "sample": frozenset({"out", "count", "version", "invert"}),
    "score": frozenset({"text", "image", "config", "json"}),
    "prompts": frozenset({"out", "captions", "captioner"}),
    "reward": rewards.OPTIONS | serve_rewards.OPTIONS,
    "toon": frozenset({"work", "out", "seed"}),
    "evaluate": frozenset({"prompts", "version", "json"}),
    "export": frozenset({"out", "version"}),
    "worker": frozenset({"connect", "key", "patience"}),
    "annotate": annotate.OWN,
    **inspect.OWN,
    **logs.OWN,
    "monitor": monitor.OWN,
    "plan": frozenset({"family", "gpu", "sampler-gpu", "learner-gpu", "mfu"}),
}


def _own_options(words: Sequence[str]) -> frozenset[str]:
    return OWN.get(words[0] if words else "", frozenset()) | {"help"}


def describe_keys() -> str:
    """Every key of the configuration with its kind, default and meaning."""
    toon = leaves(load_config(TOON).model_dump())
    lines = ["configuration keys (kind; default; where it differs, the value of the embedded toon run):", ""]
    section = ""
    for key in keys():
        if "." in key.name and key.name.split(".")[0] != section:
            section = key.name.split(".")[0]
            lines.append("")
        default = _shown(key.default)
        value = toon.get(key.name, key.default)
        other = f"; toon {_shown(value)}" if value != key.default else ""
        lines.append(f"  --{key.name.replace('_', '-')}  ({key.kind}; {default}{other})")
        lines.append(f"      {key.description}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# Subcommands.


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="douga",
        description="Align an image-to-video diffusion model with preference, online (AnimeReward, GAPO, OnlineVPO).",
        epilog=EXAMPLES + "\nall keys: douga config",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"douga {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_run(commands)
    _add_worker(commands)
    _add_plan(commands)
    _add_clips(commands)
    _add_run_folder(commands)
    _add_data(commands)
    reward = _add(commands, "reward", _config, "make rating sets; train, measure and serve reward heads")
    rewards.add_reward(reward, Parser, _add)
    annotate.add(commands, _add)
    inspect.add(commands, _add)
    logs.add(commands, _add)
    monitor.add(commands, _add)
    return parser


def _add(commands: Any, name: str, act: Callable[..., int], words: str, epilog: str = "", keys: bool = False) -> Any:
    command = commands.add_parser(
        name,
        help=words,
        description=words,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(act=act, takes_keys=keys)
    return command


def _lazily(name: str, options: argparse.Namespace, flags: dict[str, Any]) -> int:
    """Call a command of `deploy/cli/commands.py`; importing it brings torch."""
    from deploy.cli import commands, run  # noqa: PLC0415 - `--help` answers without torch

    return run.or_failed(partial(getattr(commands, name), options, flags))


def _add_run(commands: Any) -> None:
    epilog = partial(lambda: EXAMPLES + "\n" + describe_keys())
    run = _add(commands, "run", _run, "start or resume a run: the main job", keys=True)
    run.usage = "douga run [CONFIG.toml] [--KEY VALUE ...]"
    run.format_help = partial(_help_with, run.format_help, epilog)
    run.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="default: the embedded toon run")
    finetune = _add(commands, "finetune", _finetune, "fine-tune on a few real clips", annotate.FINETUNE, keys=True)
    finetune.add_argument("clips", type=Path, metavar="CLIPS", help="folder of mp4 files, each with a NAME.txt")
    finetune.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="default: the embedded toon run")
    _add(commands, "config", _config, "list every configuration key with its kind, default and meaning")


def _help_with(own: Callable[[], str], more: Callable[[], str]) -> str:
    """A help text whose long part is made only when it is asked for."""
    return f"{own()}\n{more()}\n"


def _run(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    recorded = {"sampler.candidates": "2"} if "pairs" in flags else {}
    config = load_config(options.config or TOON, recorded | flags)
    options.resolved = config
    from deploy.cli import run  # noqa: PLC0415 - `--help` answers without rich

    return run.run(options, flags)


def _finetune(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    own = {"name": "finetune", "algorithm.name": "sft", "sampler.candidates": "1", "pairs": str(options.clips)}
    return _run(options, own | flags)


def _add_worker(commands: Any) -> None:
    worker = _add(
        commands,
        "worker",
        _work,
        "join a live run as a sampler or rewarder, from any machine",
        "A run says at its start where others may join. The worker takes the run's configuration, works until the run\n"
        "is over or Ctrl-C, and leaves; what it leaves unfinished is done by others. It needs the same model files as\n"
        "the run; where they lie here, and on which device they work, may be given:\n"
        "  --model.path --model.device --reward.path --pairs --cluster.threads\n\n"
        "examples:\n"
        "  douga worker sampler --connect tcp://127.0.0.1:41873              on the machine of the run\n"
        "  douga worker sampler --connect tcp://10.0.0.5:7000 --key worker.key --model.device cuda:0\n"
        "      worker.key is a copy of RUN/keys/worker.key (chmod 600); cluster.port = 7000 keeps the address over\n"
        "      restarts of the run, so that the worker finds it again",
        keys=True,
    )
    worker.add_argument("role", choices=("sampler", "rewarder"))
    worker.add_argument("--connect", required=True, metavar="tcp://HOST:PORT", help="where the run's hub says to join")
    worker.add_argument("--key", type=Path, metavar="FILE", help="copy of the run's keys/worker.key; not on loopback")
    worker.add_argument(
        "--patience", type=float, default=300.0, metavar="SECONDS", help="for a hub that is gone (default: 300)"
    )


def _work(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.cli import run, worker  # noqa: PLC0415 - `--help` answers without zmq

    return run.or_failed(partial(worker.work, options, flags))


def _add_plan(commands: Any) -> None:
    command = _add(
        commands,
        "plan",
        _plan,
        "what a run needs per GPU, in time and on disk, before GPUs are rented",
        "Computes, without loading a model, the memory of each role term by term, the time of a clip and of a step,\n"
        "the samplers that keep the learner busy, and the disk. What cannot fit is refused (exit code 2), with the\n"
        "knobs that help. Times rest on an assumed share of the GPU's peak, --mfu: measure yours, then give it. Sizes\n"
        "come from the config files in model.path; where that folder is not here, name the published family.\n\n"
        "examples:\n"
        "  douga plan deploy/launch/configs/a800-online.toml --family 5b-i2v --gpu A800-80GB\n"
        "  douga plan my.toml --sampler-gpu RTX4090-24GB --learner-gpu H100-80GB --mfu 0.35\n"
        "  douga plan my.toml --gpu H100-80GB --learner.micro-batch 2      any key may be changed, as with run",
        keys=True,
    )
    command.add_argument("config", type=Path, metavar="CONFIG.toml")
    command.add_argument("--family", help="2b, 5b-i2v or 1.5-5b-i2v, in place of the files in model.path")
    command.add_argument("--gpu", default="A800-80GB", help="A800-80GB (default), H100-80GB, H200-141GB, RTX4090-24GB")
    command.add_argument("--sampler-gpu", help="where the samplers have another one")
    command.add_argument("--learner-gpu", help="where the learner has another one")
    command.add_argument("--mfu", type=float, default=0.4, help="assumed share of the GPU's peak (default: 0.4)")


def _plan(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from deploy.cli import plan  # noqa: PLC0415 - what other commands do not need

    return plan.command(options, flags)


def _config(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    print(describe_keys())
    return 0


def _add_clips(commands: Any) -> None:
    sample = _add(
        commands,
        "sample",
        partial(_lazily, "sample"),
        "make clips from a model folder or from a run's newest weights",
        "examples:\n  douga sample                      8 held-out toon prompts, the embedded model\n"
        "  douga sample runs/toon --count 4  the aligned weights of a run\n"
        "  douga sample /models/CogVideoX-5b-I2V --prompts my.jsonl --model.device cuda:0 ...\n"
        "  douga sample tuned --prompts my.jsonl --invert walk.mp4 --sampler.steps 50\n\n"
        "Any configuration key may be given; of a prompt file its training prompts are taken, in shuffled order.",
        keys=True,
    )
    sample.add_argument("source", nargs="?", default="toon", help="'toon', a pipeline folder, or a run (default: toon)")
    sample.add_argument("--count", type=int, default=8, help="prompts (default: 8)")
    sample.add_argument(
        "--version", type=int, help="a run's weights version (default: its newest; 0 is the base model)"
    )
    sample.add_argument(
        "--invert", type=Path, metavar="CLIP.mp4", help="start from this clip's noise, by DDIM inversion: its motion"
    )
    sample.add_argument("--out", type=Path, default=Path("samples"), help="folder for clips, samples.json, sheet.png")
    score = _add(
        commands,
        "score",
        partial(_lazily, "score"),
        "score clips as a run would: every head and judge of its configuration, and the mean that counts",
        "examples:\n  douga score samples               what `douga sample` wrote, by the embedded heads\n"
        '  douga score a.mp4 --text "a robot walks right in the snow" --json\n'
        "  douga score samples --reward.judges.vs.kind videoscore --reward.judges.vs.path /models/vs\n\n"
        "Any configuration key may be given. A clip that cannot be scored is named on stderr and left out; with none\n"
        "left the exit code is 2.",
        keys=True,
    )
    score.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="mp4 files, or folders with a samples.json")
    score.add_argument("--text", help="caption of the mp4 files")
    score.add_argument("--image", type=Path, help="first frame of the mp4 files (default: each clip's own)")
    score.add_argument("--config", type=Path, metavar="CONFIG.toml", help="its reward scores (default: embedded heads)")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_run_folder(commands: Any) -> None:
    evaluate = _add(
        commands,
        "evaluate",
        partial(_lazily, "evaluate_run"),
        "repeat a run's held-out comparison from its weights, beside the run",
    )
    evaluate.add_argument("run", help="run folder, or its name under runs/")
    evaluate.add_argument("--prompts", type=int, help="held-out prompts (default: the run's)")
    evaluate.add_argument("--version", type=int, help="weights version to compare with the base (default: the newest)")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_export(commands)
    recover = _add(
        commands,
        "recover",
        partial(_lazily, "recover_run"),
        "restore the ledger of a run that says it is damaged",
        "With every checkpoint a run keeps a copy of its ledger. When `douga run` says that the ledger is damaged,\n"
        "missing, or that blobs are, this puts the newest copy that belongs to a checkpoint in its place, keeps the\n"
        "damaged one beside it, and says what is lost: the steps since are taken again, what was under way is sampled\n"
        "again. Then the same `douga run` goes on. A healthy ledger is left alone (exit code 2), and so is a run\n"
        "without such a copy.\n\nexample:\n  douga recover runs/toon",
    )
    recover.add_argument("run", help="run folder, or its name under runs/")
    report = _add(commands, "report", partial(_lazily, "write_report"), "write a finished run's report.html anew")
    report.add_argument("run", help="run folder, or its name under runs/")


def _add_export(commands: Any) -> None:
    export = _add(
        commands,
        "export",
        partial(_lazily, "export_run"),
        "write a run's weights for diffusers: a LoRA file, or a whole pipeline",
        "learner.train = lora: DIR/pytorch_lora_weights.safetensors, for pipe.load_lora_weights(DIR). Its scale,\n"
        "alpha / rank, stands in the file's metadata.\n"
        "learner.train = full: a pipeline folder, for CogVideoXImageToVideoPipeline.from_pretrained(DIR). Do not edit\n"
        "it in place: where disks allow it, its untrained parts are hard links to the base model's files.\n\n"
        "examples:\n"
        "  douga export runs/mine --out aligned              the newest version\n"
        "  douga export mine --out halfway --version 30      an earlier one that is still in runs/mine/weights\n"
        "  douga sample aligned                              a whole pipeline is a model like any other",
    )
    export.add_argument("run", help="run folder, or its name under runs/")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    export.add_argument("--version", type=int, help="weights version (default: the newest; 0 is the base model)")


def _add_data(commands: Any) -> None:
    prompts = _add(commands, "prompts", partial(_lazily, "from_videos"), "make prompt files")
    kinds = prompts.add_subparsers(dest="kind", metavar="from-videos", required=True, parser_class=Parser)
    videos = kinds.add_parser(
        "from-videos", help="third frame and caption of every video in a folder", allow_abbrev=False
    )
    videos.add_argument("folder", type=Path, help="folder of videos")
    videos.add_argument("--out", type=Path, required=True, help="folder for prompts.jsonl and the images")
    videos.add_argument("--captions", type=Path, help=".jsonl or .csv with columns video, prompt (else VIDEO.txt)")
    videos.add_argument("--captioner", help="a Qwen2-VL folder or hub id, for videos without a caption")
    toon = _add(commands, "toon", partial(_lazily, "toon_build"), "make the embedded toon model and reward heads")
    kinds = toon.add_subparsers(dest="kind", metavar="build", required=True, parser_class=Parser)
    build = kinds.add_parser("build", help="train them; resumable, an hour or two on 2 cores", allow_abbrev=False)
    build.add_argument(
        "--work", type=Path, default=Path("build/toon"), help="states of the stages (default: build/toon)"
    )
    build.add_argument("--out", type=Path, help="where the weights go (default: where `toon` is read from)")
    build.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    sys.exit(main())
