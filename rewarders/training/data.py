"""What the heads learn from: rendered clips with known defects, and the renderer's truth as their rating.

Several defects at once, each there with probability `PRESENT`, its severity uniform in [0, 1]. The split is by
character: heads are trained on `TRAIN_CHARACTERS` in all recolourings, and tested on `TEST_CHARACTERS` as they are,
which no training clip shows, not even as the stand-in of an identity swap. Half of the clips are degraded, because what
a policy draws has been through a VAE and H.264. All is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from common.clips import decode_clip, encode_mp4
from common.toon.world import (
    ACTIONS,
    CHARACTERS,
    DEFECTS,
    DIMENSIONS,
    FPS,
    FRAMES,
    HEIGHT,
    PALETTES,
    SCENES,
    WIDTH,
    Defects,
    Shot,
    caption,
    render,
    start_x,
    truth,
)

TRAIN_CHARACTERS = ("female_adventurer", "male_person", "robot", "zombie")
TEST_CHARACTERS = ("female_person", "male_adventurer")
PRESENT = 0.45  # probability of each defect
DEGRADED = 0.5  # share of clips that are degraded
PART = 16  # clips degraded together
_STREAMS = {"train": 1, "test": 2}

Degrade = Callable[[np.ndarray], np.ndarray]
"""uint8 ``[K, F, H, W, 3]`` -> the same, as a generator would draw it (e.g. a VAE's reconstruction)."""


@dataclass(frozen=True)
class Samples:
    """Clips with their prompts' parts and ratings."""

    clips: np.ndarray  # uint8 [K, FRAMES, HEIGHT, WIDTH, 3]
    firsts: np.ndarray  # uint8 [K, HEIGHT, WIDTH, 3], the clean first frames
    shots: tuple[Shot, ...]
    truths: np.ndarray  # float32 [K, 6], 0 .. 100, in the order of DIMENSIONS
    badness: np.ndarray  # float32 [K, 6, FRAMES - 1], 0 .. 1, of every frame after the first

    @property
    def captions(self) -> list[str]:
        """The prompts' texts."""
        return [caption(shot) for shot in self.shots]

    def truth_of(self, dimension: str) -> np.ndarray:
        """Ratings of one dimension, ``[K]``."""
        return self.truths[:, DIMENSIONS.index(dimension)]

    def badness_of(self, dimension: str) -> np.ndarray:
        """Badness by frame of one dimension, ``[K, FRAMES - 1]``."""
        return self.badness[:, DIMENSIONS.index(dimension)]


def draw_samples(
    count: int, seed: int, split: str = "train", degrade: Degrade | None = None, degraded: float = DEGRADED
) -> Samples:
    """Render `count` clips of a split (``train`` or ``test``) and degrade a share of them.

    `degrade` is what stands for the generator's losses (default: blur and coarse noise); H.264 follows in any case.
    """
    rng = np.random.default_rng([seed, _STREAMS[split]])
    clips = np.empty((count, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    shots, truths, badness = [], [], []
    for i in range(count):
        shot, defects = _draw_shot(rng, split), _draw_defects(rng)
        clips[i], swapped = _render(shot, defects, _stand_in(shot, rng, split), rng)
        shots.append(shot)
        truths.append([truth(defects)[name] for name in DIMENSIONS])
        badness.append(_badness(defects, swapped))
    firsts = clips[:, 0].copy()
    chosen = np.flatnonzero(rng.random(count) < degraded)
    for start in range(0, len(chosen), PART):
        part = chosen[start : start + PART]
        lossy = degrade(clips[part]) if degrade else soften(clips[part], rng)
        clips[part] = np.stack([decode_clip(encode_mp4(clip, FPS)) for clip in lossy])
    return Samples(clips, firsts, tuple(shots), np.array(truths, np.float32), np.array(badness, np.float32))


def _draw_shot(rng: np.random.Generator, split: str) -> Shot:
    """Any action anywhere: the prompts' own splits are by combination and do not matter to heads."""
    cast, palettes = (TRAIN_CHARACTERS, len(PALETTES)) if split == "train" else (TEST_CHARACTERS, 1)
    action = str(rng.choice(tuple(ACTIONS)))
    return Shot(
        str(rng.choice(cast)),
        str(rng.choice(tuple(SCENES))),
        action,
        start_x(action, rng),
        int(rng.integers(8)),
        int(rng.integers(palettes)),
    )


def _draw_defects(rng: np.random.Generator) -> Defects:
    there = rng.random(len(DEFECTS)) < PRESENT
    severity = rng.random(len(DEFECTS))
    return Defects(**{name: float(severity[i]) for i, name in enumerate(DEFECTS) if there[i]})


def _stand_in(shot: Shot, rng: np.random.Generator, split: str) -> Shot:
    """The shot with the character that an identity swap puts in place; in training half of them recoloured too."""
    cast = TRAIN_CHARACTERS if split == "train" else CHARACTERS
    character = str(rng.choice([name for name in cast if name != shot.character]))
    palette = int(rng.integers(len(PALETTES))) if split == "train" and rng.random() < 0.5 else shot.palette
    return replace(shot, character=character, palette=palette)


def _render(shot: Shot, defects: Defects, stand_in: Shot, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Render both casts with the same defects, and show the stand-in for one run of round(8 swap) frames.

    Returns the clip and which frames are swapped, bool ``[FRAMES]``.
    """
    seed = int(rng.integers(2**31))
    length = round(defects.swap * (FRAMES - 1))
    start = int(rng.integers(1, FRAMES - length + 1))
    swapped = (np.arange(FRAMES) >= start) & (np.arange(FRAMES) < start + length)
    others = replace(defects, swap=0.0)
    clip = render(shot, others, seed)
    if length:
        clip[swapped] = render(stand_in, others, seed)[swapped]
    return clip, swapped


def _badness(defects: Defects, swapped: np.ndarray) -> np.ndarray:
    """How bad each frame after the first is, ``[6, FRAMES - 1]``: a wrong action or character is in a frame or not,
    a severity is in all of them."""
    bad = np.repeat([[1 - value / 100] for value in truth(defects).values()], FRAMES - 1, axis=1)
    onset = FRAMES - round(defects.wrong * (FRAMES - 1))
    bad[DIMENSIONS.index("text")] = np.arange(1, FRAMES) >= onset
    bad[DIMENSIONS.index("character")] = swapped[1:]
    return bad


def soften(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cheap stand-in for a VAE: a blur of random strength, and coarse noise that changes from frame to frame."""
    video = torch.from_numpy(clips).movedim(-1, 2).flatten(0, 1).float()
    count, frames = clips.shape[:2]
    coarse = functional.interpolate(functional.avg_pool2d(video, 2), scale_factor=2, mode="bilinear")
    share = torch.from_numpy(rng.uniform(0.2, 1.0, (count, 1, 1, 1, 1))).float()
    spread = torch.from_numpy(rng.uniform(0.0, 8.0, (count, 1, 1, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal((count * frames, 3, HEIGHT // 4, WIDTH // 4), np.float32))
    noise = functional.interpolate(noise, scale_factor=4, mode="bilinear").unflatten(0, (count, frames))
    video, coarse = video.unflatten(0, (count, frames)), coarse.unflatten(0, (count, frames))
    mixed = video + share * (coarse - video) + spread * noise
    return mixed.movedim(2, -1).clamp(0, 255).round().to(torch.uint8).numpy()


def mirrored(captions: Sequence[str]) -> list[str]:
    """The captions of the clips seen in a mirror: left and right change places."""
    swap = {"left": "right", "right": "left"}
    return [" ".join(swap.get(word, word) for word in text.split()) for text in captions]
