"""The shape that the six AnimeReward heads share; each head is a model of its own, trained on its own.

```
clip [F, 48, 64, 3], first frame [48, 64, 3]
  -> one convolution per view (what the head asks for), summed      [F, C, 12, 16]
     (and, where asked for, a map of what is not in the first frame  [F, 1, 12, 16])
  -> + a learned map of places, two more convolutions               [F, C', 6, 8]
  -> mean, maximum and a coarse map over space                      v_t [F, 64]
  -> v_t, v_t - v_0 and the caption's words, convolved over time    defect z_t [F]
  -> 100 * (1 - mean over t >= 1 of sigmoid(z_t))                   0 (worst) .. 100 (clean)
```

The views are what makes a head blind to who is drawn: differences to the frame before and to the first frame say
what changes, not what is there. The map compares every patch with the first frame's patches, wherever those are, for
figures move: how unlike the most alike one is, by a learned measure. The mean over frames is the form of the truth: a
share of bad frames, or a severity that every frame shows. The trunk knows no batch: normalisation uses running
statistics when scoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from common.toon.world import ACTIONS, HEIGHT, WIDTH

View = Literal["frame", "previous", "bend", "first"]
FEATURES = 64  # length of v_t
MAPS = 4  # channels of the coarse map
PATCH = 16  # length of a patch's features, by which it is found in the first frame


@cache
def vocabulary() -> tuple[str, ...]:
    """The words that say what is done; names and places are other heads' business, and ignored like unknown words."""
    return tuple(sorted({word for action in ACTIONS.values() for word in action.phrase.split()}))


def bag_of_words(captions: Sequence[str]) -> torch.Tensor:
    """Which words of the vocabulary a caption has, float32 ``[B, words]``."""
    words = [set(caption.lower().replace(",", " ").replace(".", " ").split()) for caption in captions]
    return torch.tensor([[float(word in has) for word in vocabulary()] for has in words]).reshape(len(words), -1)


class Trunk(nn.Module):
    """One head's network: `views` are what it looks at, `caption` says whether it reads the words, `search` whether it
    looks for every patch in the first frame."""

    def __init__(self, views: Sequence[View], caption: bool, search: bool = False, width: int = 24) -> None:
        super().__init__()
        self.views = tuple(views)
        self.caption, self.search = caption, search
        self.look = nn.Conv2d(3, width * len(self.views), 6, stride=4, padding=1, bias=False)
        self.places = nn.Parameter(torch.zeros(width, HEIGHT // 4, WIDTH // 4))
        if search:
            self.patches = nn.Sequential(
                nn.Conv2d(3, 2 * PATCH, 6, stride=4, padding=1, bias=False),
                nn.BatchNorm2d(2 * PATCH),
                nn.ReLU(),
                nn.Conv2d(2 * PATCH, PATCH, 3, padding=1),
            )
        seen = width + search
        self.encoder = nn.Sequential(
            nn.BatchNorm2d(seen),
            nn.ReLU(),
            *_block(seen, width + 8, stride=2),
            *_block(width + 8, width + 8),
        )
        self.map = nn.Conv2d(width + 8, MAPS, 1)
        self.frame = nn.Linear(2 * (width + 8) + MAPS * (HEIGHT // 8) * (WIDTH // 8), FEATURES)
        words = len(vocabulary()) if caption else 0
        self.time = nn.Sequential(
            nn.Conv1d(2 * FEATURES + words, FEATURES, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(FEATURES, FEATURES, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(FEATURES, 1, 1),
        )

    def forward(self, video: torch.Tensor, first: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """The badness in [0, 1] of every frame after the first, ``[B, F - 1]``.

        `video` ``[B, F, 3, H, W]`` in [0, 1] stands beside its clean `first` frame ``[B, 3, H, W]`` and the caption's
        `words` ``[B, words]``, which heads without caption ignore.
        """
        looked = self._look(video, first) + self.places
        if self.search:
            looked = torch.cat([looked, self._missing(video, first)], 2)
        cells = self.encoder(looked.flatten(0, 1))
        pooled = torch.cat([cells.mean((2, 3)), cells.amax((2, 3)), self.map(cells).flatten(1)], 1)
        features = functional.relu(self.frame(pooled)).unflatten(0, video.shape[:2])
        parts = [features, features - features[:, :1]]
        if self.caption:
            parts.append(words[:, None].expand(-1, video.shape[1], -1))
        scores = self.time(torch.cat(parts, 2).transpose(1, 2))[:, 0]
        return scores[:, 1:].sigmoid()

    def _missing(self, video: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """How unlike each patch is to the most alike one of the first frame, 0 .. 2, ``[B, F, 1, H/4, W/4]``."""
        frames = torch.cat([first[:, None], video], 1)
        features = functional.normalize(self.patches(frames.flatten(0, 1) - 0.5), dim=1).unflatten(0, frames.shape[:2])
        known, asked = features[:, 0].flatten(2), features[:, 1:].flatten(3)
        with torch.no_grad():  # the gradient needs the most alike one alone
            best = torch.einsum("bcq,bfcp->bfpq", known, asked).argmax(3)
        places = best.flatten(1)[:, None].expand(-1, PATCH, -1)
        found = known.gather(2, places).unflatten(2, best.shape[1:]).transpose(1, 2)
        alike = (asked * found).sum(2)
        return (1 - alike).unflatten(2, features.shape[-2:])[:, :, None]

    def _look(self, video: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """The sum of all views' convolutions, ``[B, F, width, H/4, W/4]``.

        Differences of frames are linear, so the filters are combined, not the frames: one filter bank per delay in
        time. Before the clip begins, its frame 0 is taken to stand still.
        """
        banks = dict(zip(self.views, self.look.weight.chunk(len(self.views)), strict=True))
        delayed = _delays(banks)
        maps = self._convolve(video.flatten(0, 1), torch.cat(delayed)).unflatten(0, video.shape[:2])
        total, *late = maps.chunk(len(delayed), 2)
        for delay, part in enumerate(late, start=1):
            total = total + torch.cat([part[:, :1]] * delay + [part[:, :-delay]], 1)
        if "first" in banks:
            total = total - self._convolve(first, banks["first"])[:, None]
        return total

    def _convolve(self, frames: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(frames - 0.5, bank, stride=self.look.stride, padding=self.look.padding)


def _block(into: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()


def _delays(banks: Mapping[View, torch.Tensor]) -> list[torch.Tensor]:
    """The filters on frames t, t - 1 (and t - 2) that make up the views I_t, I_t - I_0, I_t - I_{t-1} and
    I_t - 2 I_{t-1} + I_{t-2}, for those of the views that there are."""
    delays = [torch.stack(list(banks.values())).sum(0)]
    previous, bend = banks.get("previous"), banks.get("bend")
    if bend is not None:
        delays += [-2 * bend if previous is None else -2 * bend - previous, bend]
    elif previous is not None:
        delays.append(-previous)
    return delays
