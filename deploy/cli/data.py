"""``douga prompts`` and ``toon``: build and rewrite prompt files; build the toon model. Parsing imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from deploy.cli.flags import add_command

FROM_VIDEOS = """\
Reads the videos in the folder. Writes OUT/prompts.jsonl and one PNG per video: the third frame, because first frames
are often black or part of a fade. A caption comes from --captions, else from VIDEO.txt, else from --captioner. Use the
file as a run's `prompts`.

examples:
  douga prompts from-videos videos/ --out prompts --captions captions.csv
  douga prompts from-videos videos/ --out prompts --captioner Qwen/Qwen2-VL-2B-Instruct
  douga run my.toml --prompts prompts/prompts.jsonl
"""
FIRST_FRAMES = """\
Makes an image for every row of a prompt file that has none, with a text-to-image pipeline of diffusers: any folder that
AutoPipelineForText2Image loads, in safetensors. Writes OUT/images and OUT/prompts.jsonl, which has all columns of FILE.
The same command resumes. A row whose caption changed gets a new image; so do all rows after a change of model, seed or
settings. Models look best at the size that they were trained on; a run scales and crops images to its clips' size.

examples:
  douga prompts first-frames captions.jsonl --model sdxl --out prompts --height 832 --width 1216 --device cuda
  douga run my.toml --prompts prompts/prompts.jsonl
"""
BALANCE = """\
Takes at most --most prompts of every action and writes them to NEW.jsonl, with all columns of FILE. An action with
fewer than --least keeps all that it has. Both are named, and so are actions without a prompt. The column `category` is
the action; one that --actions does not know is an error.

examples:
  douga prompts balance prompts/prompts.jsonl --out balanced.jsonl
  douga prompts balance prompts.jsonl --out balanced.jsonl --actions mine.toml --least 10 --most 20
  douga prompts rewrite balanced.jsonl --out long.jsonl --model /models/Qwen2.5-7B-Instruct

mine.toml has lists of actions: affection = ["kissing", "hugging"]. actors/prompts/actions.toml is the default.
"""
REWRITE = """\
CogVideoX was trained on long captions, and its authors let a language model extend short ones. This writes NEW.jsonl:
the rows of FILE with rewritten captions; `original` has the old ones. The same command resumes: finished rows are kept,
as long as their id and old caption are in FILE. An answer that is empty, cut or too long for T5 is an error: its row is
left out, and the exit code is 1.

examples:
  douga prompts rewrite prompts.jsonl --out long.jsonl --model /models/Qwen2.5-7B-Instruct --device cuda:0
  douga prompts rewrite prompts.jsonl --out long.jsonl --url http://localhost:8000 --pipeline /models/CogVideoX-5b-I2V
  douga run my.toml --prompts long.jsonl
"""
TOON_BUILD = """\
Renders training clips, then trains the VAE, the text encoder, the transformer and the six reward heads. Writes
training states to WORK, and OUT/pipeline and OUT/heads at the end. The same command resumes an interrupted training.

example:
  douga toon build --out toon-weights --seed 1
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    prompts = commands.add_parser(
        "prompts", help="build and rewrite prompt files", description="build and rewrite prompt files"
    )
    kinds = prompts.add_subparsers(dest="kind", metavar="KIND")
    summary = "take the third frame and the caption of every video in a folder"
    videos = add_command(kinds, "from-videos", _from_videos, summary, FROM_VIDEOS)
    videos.add_argument("folder", type=Path, help="folder of videos")
    videos.add_argument("--out", type=Path, required=True, help="folder for prompts.jsonl and the images")
    videos.add_argument("--captions", type=Path, help=".jsonl or .csv: video, prompt (else VIDEO.txt), category")
    videos.add_argument("--captioner", help="a Qwen2-VL folder or hub id, for videos without a caption")
    _add_balance(kinds)
    _add_first_frames(kinds)
    _add_rewrite(kinds)
    summary = "train the embedded toon model and its reward heads"
    toon = commands.add_parser("toon", help=summary, description=summary)
    kinds = toon.add_subparsers(dest="kind", metavar="build")
    summary = "train the toon model and its heads from scratch: one to two hours on 2 cores"
    build = add_command(kinds, "build", _build_toon, summary, TOON_BUILD)
    build.add_argument(
        "--work", type=Path, default=Path("build/toon"), help="folder for training states (default: build/toon)"
    )
    build.add_argument("--out", type=Path, help="folder for the weights (default: replace the embedded ones)")
    build.add_argument("--seed", type=int, default=0, help="seed of data and training (default: 0)")


def _add_balance(kinds: Any) -> None:
    summary = "take as many prompts of every action, and say which actions have too few"
    command = add_command(kinds, "balance", _balance, summary, BALANCE)
    command.add_argument("file", type=Path, metavar="FILE", help=".jsonl or .csv of prompts, with the column category")
    command.add_argument("--out", type=Path, required=True, metavar="NEW.jsonl", help="the new prompt file")
    command.add_argument("--actions", default="anime", help="anime (default), or a TOML file of actions")
    command.add_argument("--least", type=int, default=30, help="prompts that an action should have (default: 30)")
    command.add_argument("--most", type=int, default=50, help="prompts that are taken of an action (default: 50)")
    command.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")


def _balance(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from actors.prompts.balance import balance
    from actors.prompts.vocabulary import open_vocabulary

    limits = (options.least, options.most, options.seed)
    found = balance(options.file, options.out, open_vocabulary(options.actions), *limits)
    print("\n".join(found.lines()), file=sys.stderr)
    print(options.out)
    return 0


def _add_first_frames(kinds: Any) -> None:
    summary = "make a first frame for every caption, with a text-to-image model"
    frames = add_command(kinds, "first-frames", _first_frames, summary, FIRST_FRAMES)
    frames.add_argument("file", type=Path, help="prompt file: .jsonl or .csv with the column prompt")
    frames.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="folder of a diffusers pipeline")
    frames.add_argument("--out", type=Path, required=True, help="folder for prompts.jsonl and the images")
    frames.add_argument("--height", type=int, default=480, help="pixels (default: 480)")
    frames.add_argument("--width", type=int, default=720, help="pixels (default: 720)")
    frames.add_argument("--steps", type=int, help="denoising steps (default: the pipeline's)")
    frames.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's)")
    frames.add_argument("--seed", type=int, default=0, help="each row's seed depends on it and the row (default: 0)")
    frames.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    frames.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default: float32")


def _first_frames(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from actors.prompts.first_frames import first_frames
    from actors.prompts.text_to_image import ImageSettings
    from deploy.runtime.inputs.offline_pairs import on_stderr

    settings = ImageSettings(options.height, options.width, options.steps, options.guidance, options.dtype)
    where = (options.file, options.model, options.out)
    print(first_frames(*where, settings, on_stderr, options.seed, options.device))
    return 0


def _add_rewrite(kinds: Any) -> None:
    summary = "rewrite captions into detailed ones with a language model"
    command = add_command(kinds, "rewrite", _rewrite, summary, REWRITE)
    command.add_argument("file", type=Path, metavar="FILE", help=".jsonl or .csv of prompts")
    command.add_argument("--out", type=Path, required=True, metavar="NEW.jsonl", help="the new prompt file")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="FOLDER", help="folder or hub id of a causal language model")
    source.add_argument("--url", help="server with OpenAI's /v1/chat/completions: http(s)://HOST:PORT")
    command.add_argument("--device", default="cpu", help="torch device of --model (default: cpu)")
    command.add_argument("--served", metavar="NAME", help="the model's name at --url (default: the only one there)")
    command.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token of --url (chmod 600)")
    proxy = "http://HOST:PORT of a proxy for --url (default: none, also if HTTP_PROXY is set)"
    command.add_argument("--proxy", default="", metavar="URL", help=proxy)
    command.add_argument(
        "--pipeline",
        type=Path,
        metavar="FOLDER",
        help="a CogVideoX folder, to count tokens exactly (default: 4 characters per token)",
    )


def _from_videos(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from actors.prompts import from_videos
    from deploy.runtime.inputs.offline_pairs import on_stderr

    captioner = None
    if options.captioner:
        from actors.prompts.captioner import Qwen2VLCaptioner

        captioner = Qwen2VLCaptioner(options.captioner)
    print(from_videos.from_videos(options.folder, options.out, options.captions, captioner, on_stderr))
    return 0


def _rewrite(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from actors.prompts.rewrite import length_check, rewrite
    from actors.prompts.rewriters import LocalRewriter, RemoteRewriter

    for name in ("served", "token_file", "proxy") if options.model else ():
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')}: only with --url")
    check = length_check(options.pipeline)
    if options.model:
        writer = LocalRewriter(options.model, options.device)
    else:
        writer = RemoteRewriter(options.url, options.served, options.token_file, options.proxy)
    failed = rewrite(options.file, options.out, writer, check, partial(print, file=sys.stderr, flush=True))
    print(options.out)
    if failed:
        print(f"douga: {len(failed)} caption(s) not rewritten: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _build_toon(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import build_toon

    build_toon.build(options.work, options.out or build_toon.WEIGHTS, options.seed)
    return 0
