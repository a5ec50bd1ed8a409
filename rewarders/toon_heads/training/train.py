"""Trains the six toon heads, each on its own, on rendered clips.

The loss is the cross-entropy between predicted and true badness (0..1, a soft target) of every frame. The renderer
knows which frames are bad, and per-frame targets teach much faster than a clip's share of bad frames. Most clips lack
any given defect, so an absolute error would settle at the median, "no defect"; cross-entropy is minimal at the mean and
does not saturate.

Every step's batch is a function of (seed, head, step), so an interrupted training resumes to the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.training.fit import FitConfig, fit
from rewarders.toon_heads.heads import HEADS, ToonHead, to_pixels
from rewarders.toon_heads.network import bag_of_words
from rewarders.toon_heads.training.dataset import Degrade, Regenerate, Samples, draw_samples, mirror_captions

Log = Callable[[str], None]
CLIPS = 22528
BATCH = 32
CONFIG = FitConfig(steps=6000, lr=4e-3, weight_decay=0.02, save_every=200)


def train_heads(
    folder: Path,
    seed: int,
    degrade: Degrade | None = None,
    regenerate: Regenerate | None = None,
    log: Log = print,
    plan: FitConfig = CONFIG,
    clips: int = CLIPS,
    batch: int = BATCH,
) -> list[ToonHead]:
    """Trains all six heads. `folder` keeps their training states: calling again resumes, or returns at once if all are
    done.

    `degrade` and `regenerate` imitate the policy's losses and samples (see `draw_samples`).
    """

    @cache
    def data() -> Samples:
        return draw_samples(clips, seed, "train", degrade, regenerate, log=lambda line: log(f"heads: {line}"))

    return [train_head(name, data, folder, seed, plan, log, batch) for name in HEADS]


def train_head(
    dimension: str,
    data: Callable[[], Samples],
    folder: Path,
    seed: int,
    plan: FitConfig = CONFIG,
    log: Log = print,
    batch: int = BATCH,
) -> ToonHead:
    """Trains one head on `data()`, which is only called if steps remain."""
    stream = crc32(dimension.encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed << 32) + stream)
        head = ToonHead(dimension)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, stream, step])
        return head_loss(head, data(), rng.choice(data().rated(dimension), batch), rng)

    head.train()
    fit(f"head-{dimension}", head, loss_of, plan, folder, log, matrices=muon_parameters(head))
    return head.eval().requires_grad_(False)


def muon_parameters(head: ToonHead) -> list[nn.Parameter]:
    """Returns the parameters for Muon: kernels and matrices with more than one output, except the position map."""
    named = head.named_parameters()
    return [one for name, one in named if one.ndim > 1 and len(one) > 1 and name != "places"]


class LabelledClips(Protocol):
    """Training clips with labels: rendered ones (`Samples`), or clips that people rated."""

    @property
    def clips(self) -> np.ndarray:
        """uint8 ``[K, FRAMES, HEIGHT, WIDTH, 3]``."""
        ...

    @property
    def firsts(self) -> np.ndarray:
        """uint8 ``[K, HEIGHT, WIDTH, 3]``: the clean first frames."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """The prompts' captions."""
        ...

    def badness_of(self, dimension: str) -> np.ndarray:
        """0..1: per frame after the first, ``[K, FRAMES - 1]``, or per clip, ``[K, 1]``."""
        ...


def head_loss(head: ToonHead, data: LabelledClips, chosen: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
    """Returns the cross-entropy between predicted and true badness of the `chosen` clips, per frame or per clip.

    With `rng`, half of the clips are mirrored and all are recoloured: there are only four characters, and no head may
    recognise them by their colours.
    """
    clips = to_pixels(torch.from_numpy(data.clips[chosen]))
    firsts = to_pixels(torch.from_numpy(data.firsts[chosen]))
    texts = data.captions
    captions = [texts[int(i)] for i in chosen]
    wanted = torch.from_numpy(data.badness_of(head.dimension)[chosen])
    views = (clips, firsts, bag_of_words(captions)) if rng is None else _augmented(clips, firsts, captions, rng)
    bad = head(*views)
    return functional.binary_cross_entropy(bad if wanted.shape == bad.shape else bad.mean(1, keepdim=True), wanted)


def _augmented(
    clips: torch.Tensor, firsts: torch.Tensor, captions: Sequence[str], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frames = torch.cat([firsts[:, None], clips], 1)
    flip = torch.from_numpy(rng.random(len(captions)) < 0.5)
    frames = torch.where(flip[:, None, None, None, None], frames.flip(-1), frames)
    words = torch.where(flip[:, None], bag_of_words(mirror_captions(captions)), bag_of_words(captions))
    frames = torch.einsum("bij,bfjhw->bfihw", recolouring(rng, len(captions)), frames)
    return frames[:, 1:], frames[:, 0], words


def recolouring(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Returns random permutations of the colour channels, each dimmed by up to a third, float32 ``[count, 3, 3]``."""
    order = np.argsort(rng.random((count, 3)), axis=1)
    gain = rng.uniform(0.67, 1.0, (count, 3, 1))
    return torch.from_numpy(np.eye(3)[order] * gain).float()
