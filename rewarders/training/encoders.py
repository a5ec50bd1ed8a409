"""Fine-tunes the encoders of an AnimeReward head together with it, on the head's own loss (`douga reward train`).

```
OUT/frozen/DIMENSION.{json,safetensors}   the head to start from, trained on the encoders as published
     |  clips ── encoders ── head ── loss; gradients to both; AdamW with one learning rate
OUT/DIMENSION.{json,safetensors}, OUT/DIMENSION-ROLE/     head and encoders with the lowest validation loss
```

The GAPO paper (section 3.3) fine-tunes the vision encoder for smoothness, vision and text encoder for text, ActionCLIP
for motion and BLIP for character; for appeal and image it names an encoder and a trained regression, and does not say
whether the encoder is trained. It gives no settings. Those of the public code:

| dimension | trained | learning rate | batch | epochs |
|---|---|---|---|---|
| smoothness, appeal | all of Mantis' Idefics2 | 1e-5, warm-up 3 % and cosine | 64 | 3 or fewer |
| text, image | BLIP's ViT-B and BERT, and the head | 3e-6, warm-up from 1e-6 | 30 | 5 and 6 |
| character | BLIP's ViT-L | 3e-5, times 0.9 per epoch | not used | at most 50 |
| motion | CLIP ViT-B/16, both towers, and the adapter | not published | | |

Deviations, besides those of `rewarders/anime_reward/reward.py`:

1. The head is trained first, on frozen encoders: gradients of a random head would only disturb them.
2. All layers of an encoder are trained, for every dimension. Of a vision-language model only the vision tower is used.
3. Encoders stay in evaluation mode: without dropout, training sees the features that scoring computes.
4. Character: the encoder learns from the ratings, not from the names of characters. Detector and tracker stay frozen.
5. Motion: the logit scale stays at CLIP's.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from common.data.video import decode_video
from common.errors import ConfigError
from common.errors.oom import reraise_oom
from common.files import replacing, write_whole
from rewarders.anime_reward import EncoderReward
from rewarders.first_frame import reference_frame
from rewarders.training.dataset import RatedDataset
from rewarders.training.features import EVERY, cache_key
from rewarders.training.split import Seen
from rewarders.training.train import HeadTraining, begin, fit_head, training_folder

SAVE_EVERY = 50  # steps
BAD = "unusable.json"  # row -> why, in the training's folder, once all clips were looked at
THREADS = min(8, os.cpu_count() or 1)  # that decode clips


@dataclass(frozen=True)
class EncoderTraining(HeadTraining):
    """The hyperparameters of a fine-tuning."""

    epochs: int = 10
    lr: float = 1e-5
    patience: int = 3
    frames: int = 16  # that go through an encoder at a time


class TrainedModules(nn.Module):
    """Head and encoders as one module. Encoders stay in evaluation mode; see the deviations above."""

    def __init__(self, reward: EncoderReward) -> None:
        super().__init__()
        self.head = reward.head
        self.encoders = nn.ModuleDict({role: one.tower for role, one in reward.encoders.items()})

    def train(self, mode: bool = True) -> Self:
        """Sets the head's mode."""
        self.head.train(mode)
        return self


class EncoderHead:
    """A head with its encoders over clips: a `rewarders.training.train.TrainableHead`."""

    def __init__(
        self, reward: EncoderReward, rated: RatedDataset, rows: np.ndarray, scores: np.ndarray, found: FoundInClips
    ) -> None:
        self.module: nn.Module = TrainedModules(reward).requires_grad_(True)
        self.rows = rows
        self._reward, self._rated, self._found = reward, rated, found
        self._scores = torch.from_numpy(scores).float()

    def loss(self, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
        """See `TrainableHead`."""
        return self._reward.loss(*self._batch(chosen))

    def measure(self, chosen: np.ndarray) -> tuple[float, np.ndarray | None]:
        """See `TrainableHead`."""
        features, scores = self._batch(chosen)
        return self._reward.loss(features, scores).item(), self._reward.head(features).cpu().numpy()

    def _batch(self, chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        self._reward.refresh()
        features = [self._features(i, clip) for i, clip in _decoded(self._rated, self.rows[chosen])]
        return torch.stack(features).float(), self._scores[chosen].to(self._reward.device)

    def _features(self, i: int, clip: np.ndarray | str) -> torch.Tensor:
        if isinstance(clip, str):
            raise ConfigError(f"{self._rated.bad(i, clip)}; it could be decoded when training began")
        found, device = self._found(i, clip), torch.device(self._reward.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return self._reward.clip_features(clip, self._rated.prompt(i), found)


class FoundInClips:
    """What `EncoderReward.locate` finds, computed once per clip and kept in `folder`, compressed."""

    def __init__(self, reward: EncoderReward, rated: RatedDataset, folder: Path) -> None:
        self._reward, self._rated, self._folder = reward, rated, folder
        self._used = type(reward).locate is not EncoderReward.locate

    def __call__(self, i: int, clip: np.ndarray) -> np.ndarray | None:
        """Returns the result for row `i`, a bool array or None."""
        if not self._used:
            return None
        file = self._folder / f"{cache_key(self._rated, i)}.npz"
        if not file.exists():
            self._write(file, self._reward.locate(clip, self._rated.prompt(i)))
        with np.load(file) as kept:
            shape = tuple(kept["shape"])
            return np.unpackbits(kept["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)

    def _write(self, file: Path, masks: np.ndarray | None) -> None:
        assert masks is not None
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as draft, draft.open("wb") as opened:
            np.savez_compressed(opened, bits=np.packbits(masks), shape=np.array(masks.shape))


def fine_tune(
    rated: RatedDataset,
    reward: EncoderReward,
    out: Path,
    plan: EncoderTraining,
    log: Callable[[str], None],
    seen_before: Seen | None = None,
) -> None:
    """Trains head and encoders of `reward` in place, on the ratings of its dimension.

    `reward` has the trained head to start from; `seen_before` is what its training saw.
    Interrupted, the same call resumes; on a CPU it ends in the same weights. Raises `ConfigError` if there are too few
    ratings, or if `out` holds another training.
    """
    dimension, scores = reward.dimension, rated.scores(reward.dimension)
    parts = begin(rated, dimension, out, plan, {"start": reward.digest}, seen_before)
    found = FoundInClips(reward, rated, training_folder(out, dimension) / "found")
    rated_rows = np.flatnonzero(~np.isnan(scores))
    bad = _unusable(reward, rated, rated_rows, found, training_folder(out, dimension) / BAD, log)
    rows = np.array([i for i in rated_rows if i not in bad], int)
    for encoder in reward.encoders.values():
        encoder.per_pass = plan.frames
    head = EncoderHead(reward, rated, rows, scores[rows], found)
    reasons = [rated.bad(i, why) for i, why in bad.items()]
    fit_head(head, scores[rows], dimension, parts, reasons, out, plan, log, SAVE_EVERY)
    head.module.eval().requires_grad_(False)
    reward.refresh()


def _unusable(
    reward: EncoderReward, rated: RatedDataset, rows: np.ndarray, found: FoundInClips, file: Path, log: Any
) -> dict[int, str]:
    """Returns which of `rows` cannot be used, and why. Looks at every clip once, and finds what `found` keeps."""
    if file.is_file():
        return {int(i): why for i, why in json.loads(file.read_text("utf-8")).items()}
    bad: dict[int, str] = {}
    last_log = time.monotonic()
    for done, (i, clip) in enumerate(_decoded(rated, rated.by_first_frame(rows))):
        if time.monotonic() - last_log > EVERY:
            log(f"{reward.dimension}: looked at {done}/{len(rows)} clips")
            last_log = time.monotonic()
        if why := _problem(reward, rated, i, clip, found):
            bad[i] = why
    write_whole(file, json.dumps(bad, indent=1) + "\n")
    return bad


def _problem(reward: EncoderReward, rated: RatedDataset, i: int, clip: np.ndarray | str, found: FoundInClips) -> str:
    if isinstance(clip, str):
        return clip
    try:
        prompt = rated.prompt(i)
        reward.check([clip], [prompt])
        reference_frame(clip, prompt)
        found(i, clip)
    except ValueError as error:
        reraise_oom(error)
        return str(error)
    return ""


def _decoded(rated: RatedDataset, rows: Collection[int]) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yields (row, clip uint8 ``[F, H, W, 3]`` or why it cannot be decoded); threads decode a few clips ahead."""
    ahead: deque[tuple[int, Future[np.ndarray | str]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for i in map(int, rows):
            ahead.append((i, pool.submit(_clip, rated, i)))
            if len(ahead) > THREADS:
                row, clip = ahead.popleft()
                yield row, clip.result()
        for row, clip in ahead:
            yield row, clip.result()


def _clip(rated: RatedDataset, i: int) -> np.ndarray | str:
    try:
        return decode_video(rated.clip_bytes(i))[0]
    except ValueError as error:
        return str(error)
