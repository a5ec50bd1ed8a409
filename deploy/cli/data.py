"""``douga prompts`` and ``toon``: build prompt files and the embedded toon model. Parsing imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
TOON_BUILD = """\
Renders training clips, then trains the VAE, the text encoder, the transformer and the six reward heads. Writes
training states to WORK, and OUT/pipeline and OUT/heads at the end. The same command resumes an interrupted training.

example:
  douga toon build --out toon-weights --seed 1
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    prompts = commands.add_parser("prompts", help="build prompt files", description="build prompt files")
    kinds = prompts.add_subparsers(dest="kind", metavar="from-videos")
    summary = "take the third frame and the caption of every video in a folder"
    videos = add_command(kinds, "from-videos", _from_videos, summary, FROM_VIDEOS)
    videos.add_argument("folder", type=Path, help="folder of videos")
    videos.add_argument("--out", type=Path, required=True, help="folder for prompts.jsonl and the images")
    videos.add_argument("--captions", type=Path, help=".jsonl or .csv with columns video, prompt (else VIDEO.txt)")
    videos.add_argument("--captioner", help="a Qwen2-VL folder or hub id, for videos without a caption")
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


def _from_videos(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from actors.prompts import from_videos

    captioner = None
    if options.captioner:
        from actors.prompts.captioner import Qwen2VLCaptioner

        captioner = Qwen2VLCaptioner(options.captioner)
    print(from_videos.from_videos(options.folder, options.out, options.captions, captioner))
    return 0


def _build_toon(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import build_toon

    build_toon.build(options.work, options.out or build_toon.WEIGHTS, options.seed)
    return 0
