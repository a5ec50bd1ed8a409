"""``douga reward``: the command line of reward models. Imports no torch: `deploy/rewards/actions.py` does the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deploy.cli import serve_rewards

# Options of all kinds of `douga reward`, told from the configuration's keys.
OF_BUILD = {"out", "seed", "generators", "clips", "captions", "captioner", "count", "candidates"}
OF_TRAIN = {"ratings", "head", "model", "option", "dimensions", "device", "epochs", "batch", "lr", "patience"}
OPTIONS = frozenset(OF_BUILD | OF_TRAIN | {"resamples", "json"})
BUILD = """\
VIDEOS is a folder of videos, whose third frames and captions become prompts: every generator makes clips of them, and
each video itself, cut to the same size, is one more rated source. 'toon' in its place renders clips with known defects,
and rates them by what the renderer knows.

examples:
  douga reward build videos/ --generators toon,/models/CogVideoX-5b-I2V,runs/mine --captions c.csv --out rate
  douga annotate rate                                then people rate them
  douga reward build toon --out rated --count 300    no people needed

Any configuration key may be given, for all generators; captions may have columns character and category.
"""
TRAIN = """\
Clips that share no first frame, prompt or character with others are kept for `douga reward eval`; others stop the
training when they get worse. The same command goes on after an interruption; the states lie in OUT/training.

examples:
  douga reward train --ratings rated/ratings.jsonl --out heads                       the toon world's heads
  douga reward train --ratings r.jsonl --out heads --head VideoSmoothness --model vision=/models/siglip
  douga run --reward.path heads                                                      aligns with them
"""
EVAL = """\
SRCC, PLCC, pairwise accuracy, MRR and Recall@1, 2, 4 among a prompt's candidates, and calibration, each with a 95 %
interval, beside plain signals of the pixels; on clips that share nothing with what the heads were trained on.

example:
  douga reward eval heads --ratings rated/ratings.jsonl
"""


def add_reward(command: Any, parser: type[argparse.ArgumentParser], add: Callable[..., Any]) -> None:
    """Put the kinds of ``douga reward`` below its `command`; `add` is `cli._add`."""
    kinds = command.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=parser)
    build = add(kinds, "build", partial(_lazily, "build_command"), "clips for people to rate", BUILD, keys=True)
    build.add_argument("source", metavar="VIDEOS", help="a folder of videos, or 'toon'")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for clips and ratings.jsonl")
    build.add_argument("--generators", default="toon", help="models, runs or 'toon', by commas (default: toon)")
    build.add_argument("--clips", type=int, default=1, help="of each generator for a prompt (default: 1)")
    build.add_argument("--captions", type=Path, help=".jsonl or .csv with columns video, prompt (else VIDEO.txt)")
    build.add_argument("--captioner", help="a Qwen2-VL folder or hub id, for videos without a caption")
    build.add_argument("--count", type=int, default=300, help="toon: prompts (default: 300)")
    build.add_argument("--candidates", type=int, default=4, help="toon: clips of a prompt (default: 4)")
    build.add_argument("--seed", type=int, default=0)
    _add_train(kinds, add)
    evaluate = add(kinds, "eval", partial(_lazily, "eval_command"), "how well heads agree with people", EVAL)
    evaluate.add_argument("heads", metavar="HEADS", help="folder of reward heads, or 'toon'")
    evaluate.add_argument("--ratings", type=Path, required=True, metavar="FILE", help="ratings.jsonl")
    evaluate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    evaluate.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default: 1000)")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of tables")
    serve_rewards.add_serve(kinds, add)


def _add_train(kinds: Any, add: Callable[..., Any]) -> None:
    train = add(kinds, "train", partial(_lazily, "train_command"), "train reward heads on people's ratings", TRAIN)
    train.add_argument("--ratings", type=Path, required=True, metavar="FILE", help="ratings.jsonl")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the heads")
    train.add_argument("--head", default="toon", help="'toon', or a class of rewarders/anime_reward (default: toon)")
    train.add_argument("--model", action="append", default=[], metavar="ROLE=PATH", help="a model that the class loads")
    train.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the class")
    train.add_argument("--dimensions", help="by commas (default: all that are rated and the heads know)")
    train.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    train.add_argument("--epochs", type=int, default=60, help="at most (default: 60)")
    train.add_argument("--batch", type=int, default=32, help="clips in a step (default: 32)")
    train.add_argument("--lr", type=float, help="learning rate of AdamW (default: 0.001; toon heads: 0.004)")
    train.add_argument("--patience", type=int, default=8, help="epochs without gain before the end (default: 8)")
    train.add_argument("--seed", type=int, default=0)


def _lazily(name: str, options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from deploy.cli import run  # noqa: PLC0415 - `--help` answers without torch
    from deploy.rewards import actions  # noqa: PLC0415

    act: Callable[..., int] = getattr(actions, name)
    return run.or_failed(partial(act, options, flags))
