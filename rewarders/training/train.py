"""Trains reward heads on human ratings: regression on the mean rating, one head at a time.

```
ratings.jsonl ── split by group ─┬─ training ───> AdamW on the head's loss ─┐
  (rewarders/training/split.py)  ├─ validation ─> early stopping ───────────┴─> OUT/DIMENSION.{json,safetensors}
                                 └─ test ───────> `douga reward eval`
```

There are three kinds of heads: a `TrainableReward`, a small head over cached features (`features.py`); one whose
encoders are fine-tuned with it (`encoders.py`); and a toon head, a whole network over the clips, with the loss and
augmentation of `rewarders/toon_heads/training/train.py`.

``OUT/training/DIMENSION/`` holds the training state, so the same command resumes after an interruption, and
`seen.json`: what training and validation clips show (`Seen`); evaluations leave out other clips of the same.
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
from common.files import write_whole
from common.training.fit import FitConfig, fit
from rewarders.anime_reward.trainable import TrainableReward
from rewarders.first_frame import reference_frame
from rewarders.toon_heads.heads import CLIP_SHAPE, ToonHead
from rewarders.toon_heads.training.train import head_loss
from rewarders.training.dataset import RatedDataset
from rewarders.training.features import CachedRows, features
from rewarders.training.ranking_metrics import srcc
from rewarders.training.split import Seen, Split, split_rated

Log = Callable[[str], None]
TRAINING, SEEN = "training", "seen.json"


@dataclass(frozen=True)
class HeadTraining:
    """The hyperparameters of a training; an epoch is one pass over the training clips."""

    epochs: int = 60
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    patience: int = 8  # epochs without a lower validation loss after which training stops
    seed: int = 0


class TrainableHead(Protocol):
    """A head with the clips that it learns from."""

    @property
    def module(self) -> nn.Module:
        """The trained module."""
        ...

    @property
    def rows(self) -> np.ndarray:
        """int ``[m]``: the clips' rows in the ratings file."""
        ...

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """Returns the loss on `chosen`, positions in `rows`, with augmentation drawn from `rng`."""
        ...

    def measure(self, chosen: np.ndarray) -> tuple[float, np.ndarray | None]:
        """Returns the loss on `chosen` without augmentation, and the scores ``[n]`` if they are known."""
        ...


class FeatureHead:
    """A small head over precomputed features."""

    def __init__(self, reward: TrainableReward, rows: np.ndarray, seen: CachedRows, scores: np.ndarray) -> None:
        self.module, self.rows = reward.head.requires_grad_(True), rows
        self._reward, self._seen = reward, seen
        self._scores = torch.from_numpy(scores).float()

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """See `TrainableHead`."""
        return self._reward.loss(*self._batch(chosen))

    def measure(self, chosen: np.ndarray) -> tuple[float, np.ndarray | None]:
        """See `TrainableHead`."""
        features, scores = self._batch(chosen)
        return self._reward.loss(features, scores).item(), self.module(features).cpu().numpy()

    def _batch(self, chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.module.parameters()).device
        return self._seen[chosen].to(device), self._scores[chosen].to(device)


class ClipHead:
    """A toon head over whole clips. People rate clips, not frames, so it learns the mean badness of the frames."""

    def __init__(
        self, head: ToonHead, rated: RatedDataset, rows: np.ndarray, clips: np.ndarray, scores: np.ndarray
    ) -> None:
        self.module, self.rows, self.clips = head, rows, clips
        self.firsts = np.stack([reference_frame(clip, rated.prompt(i)) for i, clip in zip(rows, clips, strict=True)])
        self.captions = [rated.rows[i].prompt for i in rows]
        self._badness = (1 - scores[:, None] / 100).astype(np.float32)

    def badness_of(self, dimension: str) -> np.ndarray:
        """``[m, 1]``; see `rewarders.toon_heads.training.train.LabelledClips`."""
        return self._badness

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """See `TrainableHead`."""
        return head_loss(self.module, self, chosen, rng)

    def measure(self, chosen: np.ndarray) -> tuple[float, np.ndarray | None]:
        """See `TrainableHead`."""
        return head_loss(self.module, self, chosen, None).item(), None


def train_toon_head(rated: RatedDataset, dimension: str, out: Path, plan: HeadTraining, log: Log) -> ToonHead:
    """Trains a new toon head on the ratings of one dimension. Raises `ConfigError` if there are too few."""
    parts = begin(rated, dimension, out, plan, {"head": "toon"})
    scores = rated.scores(dimension)
    rows, clips, bad = _toon_clips(rated, np.flatnonzero(~np.isnan(scores)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((plan.seed << 32) + crc32(dimension.encode()))
        head = ToonHead(dimension)
    fit_head(ClipHead(head, rated, rows, clips, scores[rows]), scores[rows], dimension, parts, bad, out, plan, log)
    return head.eval().requires_grad_(False)


def train_reward(
    rated: RatedDataset, reward: TrainableReward, made_of: dict[str, Any], out: Path, plan: HeadTraining, log: Log
) -> TrainableReward:
    """Trains the head of `reward` on the ratings of its dimension; `made_of` records its class and models.

    Raises `ConfigError` if there are too few ratings.
    """
    dimension = reward.dimension
    parts = begin(rated, dimension, out, plan, made_of)
    rows, seen, bad = features(reward, rated, training_folder(out, dimension) / "features", log)
    scores = rated.scores(dimension)
    there = np.flatnonzero(~np.isnan(scores[rows]))
    rows, seen = rows[there], seen.only(there)
    head = FeatureHead(reward, rows, seen, scores[rows])
    fit_head(head, scores[rows], dimension, parts, bad, out, plan, log)
    reward.head.eval().requires_grad_(False)
    return reward


def seen_in_training(heads: Path, dimension: str) -> Seen | None:
    """Returns what the head's training and validation clips show; None if there is no record.

    Raises `ConfigError` for a record without first frames, which earlier versions wrote.
    """
    path = training_folder(heads, dimension) / SEEN
    if not path.is_file():
        return None
    try:
        return Seen.from_record(json.loads(path.read_text("utf-8")))
    except KeyError:
        raise ConfigError(
            f"{path}: written by an earlier version, without the first frames that training saw; delete its folder and "
            "run the same `douga reward train` again"
        ) from None


def training_folder(out: Path, dimension: str) -> Path:
    """Returns where the training of a head keeps its state."""
    return out / TRAINING / dimension


def begin(
    rated: RatedDataset,
    dimension: str,
    out: Path,
    plan: HeadTraining,
    made_of: dict[str, Any],
    seen_before: Seen | None = None,
) -> Split:
    """Splits the rows and records what is trained on what; `seen_before` is what an earlier training saw.

    Raises `ConfigError` if the folder holds another training.
    """
    parts = split_rated(rated, plan.seed)
    seen = Seen.of(rated, np.concatenate([parts.train, parts.validation])).with_other(seen_before)
    record = {
        "ratings": digest("".join(row.model_dump_json() for row in rated.rows).encode()),
        "plan": asdict(plan),
        "made_of": made_of,
        "split": digest(*(rows.astype(np.int64).tobytes() for rows in (parts.train, parts.validation))),
        "clips": {name: len(rows) for name, rows in asdict(parts).items()},
        **seen.record(),
    }
    path = training_folder(out, dimension) / SEEN
    if path.is_file() and (differs := _changed_keys(json.loads(path.read_text("utf-8")), record)):
        raise ConfigError(
            f"{path.parent}: was trained with other {' and '.join(differs)}; delete it, or choose another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return parts


def _changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    same = json.loads(json.dumps(now))
    return [name for name in ("ratings", "made_of", "plan", "split") if before.get(name) != same[name]]


def fit_head(
    head: TrainableHead,
    scores: np.ndarray,
    dimension: str,
    parts: Split,
    bad: list[BadRow],
    out: Path,
    plan: HeadTraining,
    log: Log,
    save_every: int = 0,
) -> None:
    """Trains `head` on the `scores` ``[m]`` of its rows, and saves every `save_every` steps (0: every epoch).

    Raises `ConfigError` for less than 2 clips to train or to validate on.
    """
    for row in bad:
        log(f"{dimension}: left out: {row}")
    train, validation = _positions(head, dimension, parts)
    log(f"{dimension}: {len(train)} clips to train on, {len(validation)} to validate on; one line per epoch")
    batch = min(plan.batch, len(train))
    epoch = len(train) // batch
    stream = crc32(dimension.encode())

    def loss_of(step: int) -> torch.Tensor:
        order = np.random.default_rng([plan.seed, stream, step // epoch]).permutation(train)
        place = step % epoch * batch
        return head.loss(order[place : place + batch], np.random.default_rng([plan.seed, stream, step, 1]))

    note = ""

    def validate() -> float:
        nonlocal note
        cuts = [validation[i : i + batch] for i in range(0, len(validation), batch)]
        losses, given = zip(*map(head.measure, cuts), strict=True)
        if given[0] is not None:
            note = f"  held-out SRCC {srcc(np.concatenate(given), scores[validation]):.3f}"
        return sum(len(cut) * loss for cut, loss in zip(cuts, losses, strict=True)) / len(validation)

    def log_with_note(line: str) -> None:
        nonlocal note
        log(line + note)
        note = ""

    steps = plan.epochs * epoch
    how = FitConfig(
        steps, plan.lr, min(50, epoch), plan.weight_decay, save_every=min(epoch, save_every or epoch),
        validate_every=epoch, patience=plan.patience,
    )  # fmt: skip
    head.module.train()
    fit(dimension, head.module, loss_of, how, training_folder(out, dimension), log_with_note, validate=validate)


def _positions(head: TrainableHead, dimension: str, parts: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions in `head.rows` to train and to validate on. Raises `ConfigError` for less than 2 each."""
    train = np.flatnonzero(np.isin(head.rows, parts.train))
    validation = np.flatnonzero(np.isin(head.rows, parts.validation))
    if len(train) < 2 or len(validation) < 2:
        raise ConfigError(
            f"{dimension}: {len(train)} clips to train on and {len(validation)} to validate on; at least 2 each needed"
        )
    return train, validation


def _toon_clips(rated: RatedDataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[BadRow]]:
    """Returns the row indices, the clips uint8 ``[m, *CLIP_SHAPE]``, and the bad rows (other shapes, undecodable
    clips)."""
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
        raise ConfigError(
            f"{bad[0]}; none of {len(bad)} clips can be used" if bad else "no clip is rated in this dimension"
        )
    return np.array(list(good)), np.stack(list(good.values())), bad
