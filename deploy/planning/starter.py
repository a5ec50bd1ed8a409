"""The first configuration for a model of one's own: `douga init` reads its folder and writes files to start from.

```
DIR/run.toml        settings that fit this model and machine, each with a comment
DIR/prompts.jsonl   sample prompts, to be replaced
DIR/pictures/       image-to-video models: placeholder first frames, to be replaced
```
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.config import parse_config
from common.data.tables import printable
from common.errors import ConfigError
from common.files import write_whole
from common.images import encode_png
from common.models.cogvideox import ModelFolder
from common.models.usual import GUIDANCE, STEPS, UsualSettings
from deploy.planning.memory import Gpu
from deploy.planning.model_sizes import folder_sizes
from deploy.planning.plan import plan

CONFIG, PROMPTS, PICTURES = "run.toml", "prompts.jsonl", "pictures"
MFU = 0.4
# Settings that need less and less memory, at the price of time; the first that fits is written.
THRIFT: tuple[dict[str, Any], ...] = (
    {"checkpointing": "off"},
    {"checkpointing": "selective"},
    {"checkpointing": "full"},
    {"checkpointing": "full", "tiling": True},
    {"checkpointing": "full", "tiling": True, "offload": True},
)
CAPTIONS = (
    "a robot walks to the right",
    "a girl runs on the beach",
    "the boat sails over the sea",
    "a cat jumps on the wall",
    "the flag moves in the wind",
    "a man turns the head",
)
PLACES = ("in the snow", "in the rain", "at night", "in the sun")


TEMPLATE = """\
# Written by douga init for {model_name}. Every key: docs/configuration.md, or douga config.
#   douga run {config}
#   douga watch {run}
#   douga export {run} --out aligned
# The first command also resumes an interrupted run. The others show it, and write the weights for diffusers.
name = "{name}"
root = {root}  # folder of the run folders
mode = "serial"  # one process; "cluster": asynchronous, on any number of GPUs
steps = 20  # a first look; papers take 250 and more

# One prompt a line. {columns}"prompt": the caption. Optional: "split", train or heldout
# (without it, every 10th line of 20 or more is held out: it is compared and never trained on), "id", "character",
# "category". Pictures are scaled to cover the clip and cut at the centre. Replace the samples by your own.
prompts = {prompts}

[model]
path = {model}
frames = {usual.frames}  # {size}
height = {usual.height}
width = {usual.width}
fps = {usual.fps}  # frames per second that this family was trained on
dtype = "{usual.dtype}"
device = "{usual.device}"

[sampler]
candidates = 4  # clips per prompt; the best and the worst make a pair
steps = {steps}  # denoising steps; must divide 1000
guidance = {guidance}  # CogVideoX's default
scheduler = "{usual.scheduler}"  # the checkpoint's
micro_batch = 1
vae_tiling = {tiling}  # {how}
offload = {offload}

# What is a good clip? This judge needs no download, so that the first run works: it prefers clips that do not flicker,
# and would end at still pictures. Choose your own before you train in earnest (docs/rewards.md).
[reward]
path = ""  # or a folder of AnimeReward heads, trained on your ratings: douga reward train --help

[reward.judges.steady]
kind = "temporal_flicker"

# [reward.judges.caption]       # how well the clip fits its caption; a CLIP folder
# kind = "clip_score"
# path = "/models/clip-vit-large-patch14"

# [reward.judges.mine]          # a class of yours in mine.py: PYTHONPATH=. douga run ... (docs/extending.md)
# kind = "mine:Warmth"
# [reward.judges.mine.options]
# blue = 2.0

[algorithm]
name = "gapo"

[learner]
train = "lora"
lr = 1e-4  # of LoRA; full training: 5e-6
batch_size = 4  # pairs per optimizer step
micro_batch = 1
checkpoint_every = 5
gradient_checkpointing = "{checkpointing}"  # {how}

[evaluation]
prompts = 10  # held-out clips before and after; a verdict needs 10 distinct prompts; 0: no comparison
clips = 4

[guardrails]
prompts = 2  # held-out prompts that are sampled again during the run; 0: none
"""


def write_starter(folder: Path, model: ModelFolder, usual: UsualSettings, gpu: Gpu | None) -> list[str]:
    """Writes the files. Returns lines for the user. Raises `ConfigError` if one of them exists already."""
    for name in (CONFIG, PROMPTS, PICTURES):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: exists already; choose another folder, or delete it")
    folder = folder.resolve()
    text, lines = _fitting(folder, model, usual, gpu)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if model.image_conditioned:
            (folder / PICTURES).mkdir()
            for place in (1, 2):
                (folder / PICTURES / f"{place}.png").write_bytes(_picture(usual, place))
        rows = "".join(f"{json.dumps(row)}\n" for row in _prompts(model))
        write_whole(folder / PROMPTS, rows)
        write_whole(folder / CONFIG, text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    return lines


def _fitting(folder: Path, model: ModelFolder, usual: UsualSettings, gpu: Gpu | None) -> tuple[str, list[str]]:
    """The configuration of the first `THRIFT` that fits into `gpu`, and what to say about it."""
    if gpu is None:
        text = _toml(
            folder,
            model,
            usual,
            THRIFT[0 if usual.device == "cpu" else -1],
            "not planned: douga plan says what it needs",
        )
        return text, []
    why = ""
    for thrift in THRIFT:
        text = _toml(folder, model, usual, thrift, f"the fastest that fits one {gpu.name}, by douga plan")
        try:
            plan(
                parse_config(text, CONFIG),
                folder_sizes(model.path),
                dict.fromkeys(("sampler", "rewarder", "learner"), gpu),
                MFU,
            )
        except ConfigError as error:
            why = str(error)
        else:
            return text, []
    return text, [f"does not fit one {gpu.name}: {why}"]


def _prompts(model: ModelFolder) -> Iterator[Mapping[str, str]]:
    """24 captions; every second is held out, so that the comparison has at least 10 distinct prompts."""
    for place, (caption, where) in enumerate((c, w) for w in PLACES for c in CAPTIONS):
        row = {"prompt": f"{caption} {where}", "split": ("train", "heldout")[place % 2]}
        picture = {"image": f"{PICTURES}/{place // 2 % 2 + 1}.png"} if model.image_conditioned else {}
        yield picture | row


def _picture(usual: UsualSettings, place: int) -> bytes:
    """A placeholder of the clip's size: a disc in front of a shaded ground."""
    y, x = np.mgrid[0 : usual.height, 0 : usual.width]
    ground = np.stack([60 + 120 * y // usual.height, np.full_like(y, 140), 220 - 120 * y // usual.height], -1)
    radius = math.hypot(usual.height, usual.width) / 8
    disc = np.hypot(y - usual.height / 2, x - place * usual.width / 3) < radius
    return encode_png(np.where(disc[..., None], (230, 90 * place, 60), ground).astype(np.uint8))


def _toml(folder: Path, model: ModelFolder, usual: UsualSettings, thrift: Mapping[str, Any], how: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.name).lstrip("._-") or "mine"
    places = {key: json.dumps(str(value), ensure_ascii=False) for key, value in _places(folder, model).items()}
    return TEMPLATE.format(
        model_name=printable(model.path.name),
        config=_shell(folder / CONFIG),
        run=_shell(folder / "runs" / name),
        name=name,
        size="its positions are learned: no other size works"
        if usual.only_size
        else "of its training; smaller is faster",
        columns='"image": a picture, relative to the file; ' if model.image_conditioned else "",
        usual=usual,
        steps=STEPS,
        guidance=GUIDANCE,
        tiling=str(bool(thrift.get("tiling"))).lower(),
        offload=str(bool(thrift.get("offload"))).lower(),
        checkpointing=thrift["checkpointing"],
        how=how,
        **places,
    )


def _shell(path: Path) -> str:
    """A path as a shell takes it, on one line."""
    return printable(shlex.quote(str(path)))


def _places(folder: Path, model: ModelFolder) -> Mapping[str, Path]:
    return {"root": folder / "runs", "prompts": folder / PROMPTS, "model": model.path.resolve()}
