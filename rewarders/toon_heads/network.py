"""The network that the six toon heads share. Each head has its own weights and is trained on its own.

```
clip [F, 48, 64, 3], first frame [48, 64, 3]
  -> one convolution per view of the head, summed                   [F, C, 12, 16]
     with `search`: + a map of patches absent from the first frame  [F, 1, 12, 16]
  -> + learned position map, two more convolutions                  [F, C', 6, 8]
  -> mean, maximum and a coarse map over space                      v_t [F, 64]
  -> v_t, v_t - v_0 and the caption's words, convolved over time    logit z_t [F]
  -> 100 * (1 - mean over t >= 1 of sigmoid(z_t))                   0 (worst) .. 100 (clean)
```

All views but `frame` are differences to earlier frames or to the first one. They show what changes rather than who is
drawn, which keeps a head from memorising characters. Figures move, so `search` compares each patch with all patches of
the first frame and keeps the distance to the most similar one, in a learned feature space. The score is a mean over
frames because the ground truth is one too: a share of bad frames, or a severity that all frames have. Batch
normalisation uses running statistics when scoring, so a score does not depend on the batch.
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
PATCH = 16  # length of a patch's feature vector


@cache
def vocabulary() -> tuple[str, ...]:
    """Returns the words that describe actions. Characters, scenes and unknown words are ignored."""
    return tuple(sorted({word for action in ACTIONS.values() for word in action.phrase.split()}))


def bag_of_words(captions: Sequence[str]) -> torch.Tensor:
    """Returns a 0/1 row per caption: which words of the vocabulary it contains, float32 ``[B, words]``."""
    words = [set(caption.lower().replace(",", " ").replace(".", " ").split()) for caption in captions]
    return torch.tensor([[float(word in has) for word in vocabulary()] for has in words]).reshape(len(words), -1)


class HeadNetwork(nn.Module):
    """One head's network: its input `views`, whether it reads the `caption`, and whether it uses patch `search`."""

    def __init__(self, views: Sequence[View], caption: bool, search: bool = False, width: int = 24) -> None:
        super().__init__()
        self.views = tuple(views)
        self.caption, self.search = caption, search
        self.look = nn.Conv2d(3, width * len(self.views), 6, stride=4, padding=1, bias=False)
        self.places = nn.Parameter(torch.zeros(width, HEIGHT // 4, WIDTH // 4))
        if search:
            self.patches = _patch_encoder()
        self.encoder = _map_encoder(width + search, width + 8)
        self.map = nn.Conv2d(width + 8, MAPS, 1)
        self.frame = nn.Linear(2 * (width + 8) + MAPS * (HEIGHT // 8) * (WIDTH // 8), FEATURES)
        self.time = _time_network(2 * FEATURES + (len(vocabulary()) if caption else 0))

    def forward(self, video: torch.Tensor, first: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Returns the badness, 0..1, of every frame after the first, ``[B, F - 1]``.

        `video` is ``[B, F, 3, H, W]`` in [0, 1], `first` its clean first frame ``[B, 3, H, W]``, `words` the caption as
        ``[B, words]``, which heads without `caption` ignore.
        """
        maps = self._convolve_views(video, first) + self.places
        if self.search:
            maps = torch.cat([maps, self._patch_distance(video, first)], 2)
        cells = self.encoder(maps.flatten(0, 1))
        pooled = torch.cat([cells.mean((2, 3)), cells.amax((2, 3)), self.map(cells).flatten(1)], 1)
        features = functional.relu(self.frame(pooled)).unflatten(0, video.shape[:2])
        inputs = [features, features - features[:, :1]]
        if self.caption:
            inputs.append(words[:, None].expand(-1, video.shape[1], -1))
        logits = self.time(torch.cat(inputs, 2).transpose(1, 2))[:, 0]
        return logits[:, 1:].sigmoid()

    def _patch_distance(self, video: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Returns each patch's cosine distance, 0..2, to the nearest patch of `first`, ``[B, F, 1, H/4, W/4]``."""
        frames = torch.cat([first[:, None], video], 1)
        features = functional.normalize(self.patches(frames.flatten(0, 1) - 0.5), dim=1).unflatten(0, frames.shape[:2])
        reference, patches = features[:, 0].flatten(2), features[:, 1:].flatten(3)
        with torch.no_grad():  # only the nearest patch needs a gradient
            nearest = torch.einsum("bcq,bfcp->bfpq", reference, patches).argmax(3)
        index = nearest.flatten(1)[:, None].expand(-1, PATCH, -1)
        found = reference.gather(2, index).unflatten(2, nearest.shape[1:]).transpose(1, 2)
        similarity = (patches * found).sum(2)
        return (1 - similarity).unflatten(2, features.shape[-2:])[:, :, None]

    def _convolve_views(self, video: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all views' convolutions, ``[B, F, width, H/4, W/4]``.

        Frame differences are linear, so the filters are combined instead of the frames: one filter bank per time delay.
        Times before the clip's start repeat frame 0.
        """
        banks = dict(zip(self.views, self.look.weight.chunk(len(self.views)), strict=True))
        delayed = _delays(banks)
        maps = self._convolve(video.flatten(0, 1), torch.cat(delayed)).unflatten(0, video.shape[:2])
        total, *earlier = maps.chunk(len(delayed), 2)
        for delay, part in enumerate(earlier, start=1):
            total = total + torch.cat([part[:, :1]] * delay + [part[:, :-delay]], 1)
        if "first" in banks:
            total = total - self._convolve(first, banks["first"])[:, None]
        return total

    def _convolve(self, frames: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(frames - 0.5, bank, stride=self.look.stride, padding=self.look.padding)


def _patch_encoder() -> nn.Sequential:
    """Frame ``[B, 3, H, W]`` -> one feature vector of length `PATCH` per patch, ``[B, PATCH, H/4, W/4]``."""
    return nn.Sequential(
        nn.Conv2d(3, 2 * PATCH, 6, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(2 * PATCH),
        nn.ReLU(),
        nn.Conv2d(2 * PATCH, PATCH, 3, padding=1),
    )


def _map_encoder(into: int, out: int) -> nn.Sequential:
    """Maps ``[B, into, H/4, W/4]`` -> ``[B, out, H/8, W/8]``."""
    return nn.Sequential(nn.BatchNorm2d(into), nn.ReLU(), *_block(into, out, stride=2), *_block(out, out))


def _time_network(into: int) -> nn.Sequential:
    """Features of the frames ``[B, into, F]`` -> logits ``[B, 1, F]``."""
    return nn.Sequential(
        nn.Conv1d(into, FEATURES, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(FEATURES, FEATURES, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(FEATURES, 1, 1),
    )


def _block(into: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()


def _delays(banks: Mapping[View, torch.Tensor]) -> list[torch.Tensor]:
    """Returns the filters for frames t, t - 1 and, with ``bend``, t - 2. Combined, they give the views I_t, I_t - I_0,
    I_t - I_{t-1} and I_t - 2 I_{t-1} + I_{t-2} that `banks` has."""
    delays = [torch.stack(list(banks.values())).sum(0)]
    previous, bend = banks.get("previous"), banks.get("bend")
    if bend is not None:
        delays += [-2 * bend if previous is None else -2 * bend - previous, bend]
    elif previous is not None:
        delays.append(-previous)
    return delays
