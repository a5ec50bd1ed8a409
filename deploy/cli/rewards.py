"""``douga reward``: the command line of `deploy/rewards/`. Parsing imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.cli import serve_rewards
from deploy.cli.flags import add_command

BUILD = """\
VIDEOS is a folder of videos. The third frame and the caption of each become a prompt; every generator makes clips of
it, and the video itself, cut to the same size, is one more source to rate. With 'toon' instead of a folder, clips with
known defects are rendered and rated by the renderer.

examples:
  douga reward build videos/ --generators toon,/models/CogVideoX-5b-I2V,runs/mine --captions c.csv --out rate
  douga annotate rate                                then people rate them
  douga reward build toon --out rated --count 300    no people needed

Any configuration key can be set, for all generators. Captions may have columns character and category.
"""
TRAIN = """\
Clips that share no first frame, prompt or character with others are held out for `douga reward eval`. A validation
split stops the training when it gets worse. The same command resumes after an interruption, from OUT/training.

examples:
  douga reward train --ratings rated/ratings.jsonl --out heads                       the toon world's heads
  douga reward train --ratings r.jsonl --out heads --head VideoSmoothness --model vision=/models/siglip
  douga run --reward.path heads                                                      aligns with them
"""
EVAL = """\
Prints SRCC, PLCC, pairwise accuracy, MRR and Recall@1, 2, 4 among a prompt's candidates, and calibration, each with a
95 % interval, beside simple pixel baselines. Only clips that share nothing with the training clips are used.

example:
  douga reward eval heads --ratings rated/ratings.jsonl
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    words = "build rating sets; train, evaluate and serve reward heads"
    reward = commands.add_parser("reward", help=words, description=words)
    kinds = reward.add_subparsers(dest="kind", metavar="KIND")
    _add_build(kinds)
    _add_train(kinds)
    _add_eval(kinds)
    serve_rewards.add(kinds)


def _add_build(kinds: Any) -> None:
    build = add_command(kinds, "build", _build, "make clips for people to rate", BUILD, takes_keys=True)
    build.add_argument("source", metavar="VIDEOS", help="a folder of videos, or 'toon'")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for clips and ratings.jsonl")
    build.add_argument("--generators", default="toon", help="models, runs or 'toon', by commas (default: toon)")
    build.add_argument("--clips", type=int, default=1, help="clips of each generator per prompt (default: 1)")
    build.add_argument("--captions", type=Path, help=".jsonl or .csv with columns video, prompt (else VIDEO.txt)")
    build.add_argument("--captioner", help="a Qwen2-VL folder or hub id, for videos without a caption")
    build.add_argument("--count", type=int, default=300, help="toon: number of prompts (default: 300)")
    build.add_argument("--candidates", type=int, default=4, help="toon: clips per prompt (default: 4)")
    build.add_argument("--seed", type=int, default=0)


def _add_train(kinds: Any) -> None:
    train = add_command(kinds, "train", _train, "train reward heads on human ratings", TRAIN)
    train.add_argument("--ratings", type=Path, required=True, metavar="FILE", help="ratings.jsonl")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the heads")
    train.add_argument("--head", default="toon", help="'toon', or a class of rewarders/anime_reward (default: toon)")
    train.add_argument("--model", action="append", default=[], metavar="ROLE=PATH", help="a model that the class loads")
    train.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the class")
    train.add_argument("--dimensions", help="by commas (default: all rated dimensions that the heads have)")
    train.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    train.add_argument("--epochs", type=int, default=60, help="maximum number of epochs (default: 60)")
    train.add_argument("--batch", type=int, default=32, help="clips per step (default: 32)")
    train.add_argument("--lr", type=float, help="learning rate of AdamW (default: 0.001; toon heads: 0.004)")
    train.add_argument("--patience", type=int, default=8, help="stop after so many epochs without gain (default: 8)")
    train.add_argument("--seed", type=int, default=0)


def _add_eval(kinds: Any) -> None:
    evaluate = add_command(kinds, "eval", _eval, "measure how well heads agree with people", EVAL)
    evaluate.add_argument("heads", metavar="HEADS", help="folder of reward heads, or 'toon'")
    evaluate.add_argument("--ratings", type=Path, required=True, metavar="FILE", help="ratings.jsonl")
    evaluate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    evaluate.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _build(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import actions

    return actions.build_command(options, flags)


def _train(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import actions

    return actions.train_command(options, flags)


def _eval(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.rewards import actions

    return actions.eval_command(options, flags)
