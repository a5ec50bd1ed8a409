"""``douga reward``: builds rating sets; trains, evaluates and serves reward heads; converts published checkpoints.

Parsing imports no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.cli import serve_rewards
from deploy.cli.flags import add_command

BUILD = """\
VIDEOS is a folder of videos. The third frame and the caption of each become a prompt, and every generator makes clips
for it; the video itself, cropped to the same size, is rated too. --prompts takes the prompts from a file instead: those
of `douga prompts from-videos`, balanced or rewritten since. --foreign adds clips of other generators, and can be given
later. With 'toon' instead of a folder, clips with known defects are rendered and rated by the renderer. Writes
DIR/clips, DIR/frames and DIR/ratings.jsonl. The same command resumes after an interruption.

examples:
  douga reward build videos/ --generators toon,/models/CogVideoX-5b-I2V,runs/mine --captions c.csv --out rate
  douga reward build videos/ --prompts long.jsonl --foreign clips.csv --actions anime --out rate
  douga annotate rate --annotators 6                 then let people rate the clips
  douga reward build toon --out rated --count 300    without people

Any configuration key can be set and applies to all generators. The captions file may also have the columns character
and category. clips.csv (or .jsonl) has the columns video, prompt, generator, and optionally category, character,
first_frame and seed; paths are relative to it.
"""
TRAIN = """\
Reads a ratings file and its clips. Writes DIR/DIMENSION.json and DIR/DIMENSION.safetensors; use DIR as reward.path.
A test split that shares no first frame, prompt or character with the training clips is held out for
`douga reward eval`. Training stops early when the loss on a validation split no longer falls. The same command resumes
after an interruption, from DIR/training.

With --encoders the encoders are fine-tuned together with the head, which is trained before on frozen encoders, or comes
from the folder of --start. DIR/DIMENSION-ROLE has the fine-tuned encoder, and DIR/frozen the head before, with which
`douga reward eval` compares.

examples:
  douga reward train --ratings rated/ratings.jsonl --out heads                       toon heads
  douga reward train --ratings r.jsonl --out heads --head VideoSmoothness --model vision=/models/siglip
  douga reward train --ratings r.jsonl --out tuned --encoders --start heads --device cuda
  douga run --reward.path heads                                                      train a policy with them
"""
EVAL = """\
Reads heads, the judges of a configuration, and a ratings file with its clips. Prints SRCC, PLCC, pairwise accuracy, MRR
and Recall@1, 2, 4 among a prompt's candidates, each with a 95 % interval, calibration, and the same for simple pixel
baselines. Clips that share a first frame, prompt or character with the training clips are left out. Writes no files.
The outputs of judges are compared with the ratings of every dimension.

examples:
  douga reward eval heads --ratings rated/ratings.jsonl
  douga reward eval none --ratings r.jsonl --reward.judges.vs.kind videoscore --reward.judges.vs.path /models/vs
  douga reward eval heads --ratings r.jsonl --config my.toml       the heads beside the judges of my.toml
"""
CONVERT = """\
Reads a published checkpoint, a pickle, without running code from it, and writes DIR as a folder of safetensors. A file
that holds more than tensors is refused. Weights that are missing or unknown are named.

kinds:
  aesthetic              LAION's or VBench's linear layers        image_reward           ImageReward.pt
  hps                    HPS_v2_compressed.pt, HPS_v2.1...        animereward_image      AnimeReward, image-video
  animereward_text       AnimeReward, text-video                  animereward_character  AnimeReward, characters
  animereward_motion     AnimeReward, ActionCLIP                  transformers           a folder, pytorch_model.bin
  raft                   raft-things.pth

--base names the model, a folder or hub id, whose tokenizer, image processor or sizes the file lacks. Each kind has a
default, which is downloaded.

examples:
  douga reward convert hps HPS_v2.1_compressed.pt --out hpsv2
  douga reward convert animereward_image weights/Pretrain_humangt_meanvideo_trainset_wGT/checkpoint_06.pth --out image
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    summary = "build rating sets; train, evaluate and serve reward heads; convert checkpoints"
    examples = "example:\n  douga reward eval toon --ratings rated/ratings.jsonl\n\nhelp: douga reward KIND --help"
    reward = commands.add_parser("reward", help=summary, description=summary, epilog=examples)
    kinds = reward.add_subparsers(dest="kind", metavar="KIND")
    _add_build(kinds)
    _add_train(kinds)
    _add_eval(kinds)
    _add_convert(kinds)
    serve_rewards.add(kinds)


def _add_build(kinds: Any) -> None:
    build = add_command(kinds, "build", _build, "generate clips for people to rate", BUILD, takes_keys=True)
    build.add_argument("source", metavar="VIDEOS", help="a folder of videos, or 'toon'")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for clips and ratings.jsonl")
    build.add_argument("--generators", default="toon", help="comma-separated models, runs or 'toon' (default: toon)")
    build.add_argument("--clips", type=int, default=1, help="clips per generator and prompt (default: 1)")
    build.add_argument("--captions", type=Path, help=".jsonl or .csv: video, prompt (else VIDEO.txt), category")
    build.add_argument("--captioner", help="a Qwen2-VL folder or hub id, for videos without a caption")
    build.add_argument("--prompts", type=Path, metavar="FILE", help="prompt file; an id is the name of its video")
    build.add_argument("--foreign", type=Path, metavar="FILE", help=".jsonl or .csv of other generators' clips")
    build.add_argument("--actions", help="anime, or a TOML file: categories must be in it (default: any)")
    build.add_argument("--count", type=int, default=300, help="toon: number of prompts (default: 300)")
    build.add_argument("--candidates", type=int, default=4, help="toon: clips per prompt (default: 4)")
    build.add_argument("--seed", type=int, default=0, help="seed of the clips (default: 0)")


def _add_train(kinds: Any) -> None:
    train = add_command(kinds, "train", _train, "train reward heads on human ratings", TRAIN)
    train.add_argument("--ratings", type=Path, required=True, metavar="FILE", help="ratings.jsonl")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the heads")
    train.add_argument("--head", default="toon", help="'toon', or a class of rewarders/anime_reward (default: toon)")
    train.add_argument("--model", action="append", default=[], metavar="ROLE=PATH", help="a model that --head loads")
    train.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of --head")
    train.add_argument("--encoders", action="store_true", help="fine-tune the encoders of --head or --start too")
    train.add_argument("--start", metavar="HEADS", help="folder of trained heads to start from; only with --encoders")
    train.add_argument("--dimensions", help="comma-separated; of toon heads or --start (default: all that are rated)")
    train.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    train.add_argument("--epochs", type=int, help="maximum number of epochs (default: 60; encoders: 10)")
    train.add_argument("--batch", type=int, help="clips per step (default: 32)")
    train.add_argument("--lr", type=float, help="learning rate of AdamW (default: 0.001; toon: 0.004; encoders: 1e-5)")
    train.add_argument(
        "--patience", type=int, help="stop after this many epochs without a gain (default: 8; encoders: 3)"
    )
    train.add_argument("--frames", type=int, help="frames that an encoder takes at a time in training (default: 16)")
    train.add_argument("--seed", type=int, default=0, help="seed of split and training (default: 0)")


def _add_eval(kinds: Any) -> None:
    summary = "measure how well heads and judges agree with people"
    evaluate = add_command(kinds, "eval", _eval, summary, EVAL, takes_keys=True)
    evaluate.add_argument("heads", metavar="HEADS", help="folder of reward heads, 'toon', or 'none' for judges alone")
    evaluate.add_argument("--config", type=Path, metavar="CONFIG.toml", help="configuration with judges")
    evaluate.add_argument("--ratings", type=Path, required=True, metavar="FILE", help="ratings.jsonl")
    evaluate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    evaluate.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_convert(kinds: Any) -> None:
    convert = add_command(kinds, "convert", _convert, "convert published checkpoints to safetensors", CONVERT)
    convert.add_argument("checkpoint", metavar="KIND", help="what the file is; see below")
    convert.add_argument("file", type=Path, metavar="FILE", help="the published file, or folder")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    convert.add_argument("--base", default="", metavar="MODEL", help="model with what the file lacks")


def _build(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import actions

    return actions.build_command(options, flags)


def _train(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import actions

    return actions.train_command(options, flags)


def _eval(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import actions

    return actions.eval_command(options, flags)


def _convert(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from rewarders.conversion.kinds import convert

    convert(options.checkpoint, options.file, options.out, options.base, print)
    return 0
