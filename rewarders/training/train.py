"""Trains rewards on people's ratings: regression on the mean opinion, one head at a time.

```
ratings.jsonl ── split by group ─┬─ training ───> AdamW on the head's loss ─┐
  (rewarders/training/dataset.py)  ├─ validation ─> early stop ───────────────┴─> OUT/DIMENSION.{json,safetensors}
                                 └─ test ───────> `douga reward eval`
```

Two kinds of heads learn so: a `TrainableReward`, small, over features that are computed once (`features.py`), and a
toon head, which is all of its model and sees the clips themselves, with the loss and the augmentation of `train.py`.

``OUT/training/DIMENSION/`` keeps the state, so that the same command goes on after an interruption, and `seen.json`:
what training and validation have seen, so that no evaluation takes a clip that shares something with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from torch import nn

from common.data.ratings import BadRow
from common.digests import digest
from common.errors import ConfigError
from common.errors.disk import write_whole
from common.training.fit import FitConfig, fit
from rewarders.anime_reward.trainable import TrainableReward
from rewarders.toon_heads.heads import CLIP_SHAPE, ToonHead, first_frame
from rewarders.toon_heads.training.train import head_loss
from rewarders.training.dataset import Rated, Split, hashed, split
from rewarders.training.features import features

Log = Callable[[str], None]
TRAINING, SEEN = "training", "seen.json"


@dataclass(frozen=True)
class Plan:
    """How a head learns; an epoch is one pass over the training clips."""

    epochs: int = 60
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    patience: int = 8  # epochs without a lower validation loss after which training stops
    seed: int = 0


class Lesson(Protocol):
    """A head with the clips that it can learn from."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def rows(self) -> np.ndarray:
        """int ``[m]``: which rows of the ratings file the clips are."""
        ...

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """The loss on some of `rows` (places in it); without `rng` nothing is augmented."""
        ...


class OnFeatures:
    """A small head over features that are there."""

    def __init__(self, reward: TrainableReward, rows: np.ndarray, seen: torch.Tensor, scores: np.ndarray) -> None:
        self.module, self.rows = reward.head.requires_grad_(True), rows
        self._reward, self._seen = reward, seen
        self._scores = torch.from_numpy(scores).float()

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """See `Lesson`."""
        device = next(self.module.parameters()).device
        return self._reward.loss(self._seen[chosen].to(device), self._scores[chosen].to(device))


class OnClips:
    """A toon head and whole clips. People rate clips, not frames: the mean badness of the frames is learned."""

    def __init__(self, head: ToonHead, rated: Rated, rows: np.ndarray, clips: np.ndarray, scores: np.ndarray) -> None:
        prompts = rated.prompts()
        self.module, self.rows, self.clips = head, rows, clips
        self.firsts = np.stack([first_frame(clip, prompts[i]) for i, clip in zip(rows, clips, strict=True)])
        self.captions = [prompts[i].text for i in rows]
        self._badness = (1 - scores[:, None] / 100).astype(np.float32)

    def badness_of(self, dimension: str) -> np.ndarray:
        """``[m, 1]``; see `rewarders.toon_heads.training.train.Lessons`."""
        return self._badness

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """See `Lesson`."""
        return head_loss(self.module, self, chosen, rng)


def train_toon_head(rated: Rated, dimension: str, out: Path, plan: Plan, log: Log) -> ToonHead:
    """A fresh toon head trained on the ratings of one dimension. `ConfigError` when they do not suffice."""
    parts = _begin(rated, dimension, out, plan, {"head": "toon"})
    scores = rated.scores(dimension)
    rows, clips, bad = _toon_clips(rated, np.flatnonzero(~np.isnan(scores)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((plan.seed << 32) + crc32(dimension.encode()))
        head = ToonHead(dimension)
    _learn(OnClips(head, rated, rows, clips, scores[rows]), dimension, parts, bad, out, plan, log)
    return head.eval().requires_grad_(False)


def train_reward(
    rated: Rated, reward: TrainableReward, made_of: dict[str, Any], out: Path, plan: Plan, log: Log
) -> TrainableReward:
    """Train the head of `reward` on the ratings of its dimension; `made_of` says which class and models it is.

    `ConfigError` when the ratings do not suffice.
    """
    dimension = reward.dimension
    parts = _begin(rated, dimension, out, plan, made_of)
    rows, seen, bad = features(reward, rated, _folder(out, dimension) / "features", log)
    scores = rated.scores(dimension)
    there = ~np.isnan(scores[rows])
    rows, seen = rows[there], seen[torch.from_numpy(there)]
    _learn(OnFeatures(reward, rows, seen, scores[rows]), dimension, parts, bad, out, plan, log)
    reward.head.eval().requires_grad_(False)
    return reward


def seen_in_training(heads: Path, dimension: str) -> set[str]:
    """Hashed marks of what the head was trained and validated on; empty where that is not known."""
    path = _folder(heads, dimension) / SEEN
    return set(json.loads(path.read_text())["seen"]) if path.is_file() else set()


def _folder(out: Path, dimension: str) -> Path:
    return out / TRAINING / dimension


def _begin(rated: Rated, dimension: str, out: Path, plan: Plan, made_of: dict[str, Any]) -> Split:
    """Split the rows and write down what is trained on what. `ConfigError` when the folder is of another training."""
    marks = rated.marks()
    parts = split(marks, plan.seed, str(rated.table.file))
    known = np.concatenate([parts.train, parts.validation])
    record = {
        "ratings": digest("".join(row.model_dump_json() for row in rated.rows).encode()),
        "plan": asdict(plan),
        "made_of": made_of,
        "clips": {name: len(rows) for name, rows in asdict(parts).items()},
        "seen": sorted(hashed(mark for i in known for mark in marks[i])),
    }
    path = _folder(out, dimension) / SEEN
    if path.is_file() and (differs := _differs(json.loads(path.read_text()), record)):
        raise ConfigError(
            f"{path.parent}: a training with other {' and '.join(differs)}; delete it, or choose another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return parts


def _differs(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    same = json.loads(json.dumps(now))
    return [name for name in ("ratings", "made_of", "plan") if before.get(name) != same[name]]


def _learn(lesson: Lesson, dimension: str, parts: Split, bad: list[BadRow], out: Path, plan: Plan, log: Log) -> None:
    for row in bad:
        log(f"{dimension}: left out: {row}")
    train = np.flatnonzero(np.isin(lesson.rows, parts.train))
    validation = np.flatnonzero(np.isin(lesson.rows, parts.validation))
    if len(train) < 2 or len(validation) < 2:
        raise ConfigError(
            f"{dimension}: {len(train)} clips to train on and {len(validation)} to validate on; 2 each are needed"
        )
    log(f"{dimension}: {len(train)} clips to train on, {len(validation)} to validate on; a line is an epoch")
    batch = min(plan.batch, len(train))
    epoch = len(train) // batch
    stream = crc32(dimension.encode())

    def loss_of(step: int) -> torch.Tensor:
        order = np.random.default_rng([plan.seed, stream, step // epoch]).permutation(train)
        place = step % epoch * batch
        return lesson.loss(order[place : place + batch], np.random.default_rng([plan.seed, stream, step, 1]))

    def validate() -> float:
        cuts = range(0, len(validation), batch)
        losses = [(len(part), lesson.loss(part, None).item()) for part in (validation[i : i + batch] for i in cuts)]
        return sum(count * loss for count, loss in losses) / len(validation)

    steps = plan.epochs * epoch
    how = FitConfig(steps, plan.lr, min(50, epoch), plan.weight_decay, save_every=epoch, patience=plan.patience)
    lesson.module.train()
    fit(dimension, lesson.module, loss_of, how, _folder(out, dimension), log, validate=validate)


def _toon_clips(rated: Rated, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[BadRow]]:
    """(indices, uint8 ``[m, *CLIP_SHAPE]``, those that are of another shape or cannot be decoded)."""
    good: dict[int, np.ndarray] = {}
    bad: list[BadRow] = []
    for i, clip in rated.clips(rows):
        if isinstance(clip, BadRow):
            bad.append(clip)
        elif clip.shape != CLIP_SHAPE:
            bad.append(rated.bad(i, f"{list(clip.shape)}; the toon heads take {list(CLIP_SHAPE)}"))
        else:
            good[i] = clip
    if not good:
        raise ConfigError(f"{bad[0]}; no good clip of {len(bad)}" if bad else "no clip is rated in this dimension")
    return np.array(list(good)), np.stack(list(good.values())), bad
