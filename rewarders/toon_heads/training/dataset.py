"""What the heads learn from: rendered clips with known defects, and the renderer's truth as their rating.

Several defects at once, each there with probability `PRESENT`, its severity uniform in [0, 1]. The split is by
character: heads are trained on figures put together from the parts of `TRAIN_CHARACTERS` in endless colours, and tested
on `TEST_CHARACTERS` as they are, of which no training clip shows a part, not even in the stand-in of an identity swap.

A policy's clips have been through a VAE and H.264, so a share of the clips is degraded likewise. And a policy smears
figures as no defect does: another share is `redrawn` by the model itself, and rated by how far the figure came from
what was rendered (`smears`). A smeared figure is neither steady, nor well drawn, nor what the first frame shows, nor
itself; a wavering one is not steady either. It was drawn under the caption of what it does, so it does that, as far as
it moves; some are put beside a prompt that asks for another action, of which they show nothing, and their motion is
NaN, for unknown. All is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from common.data.video import decode_clip, encode_mp4
from common.toon.world import (
    ACTIONS,
    AS_DRAWN,
    CHARACTERS,
    DEFECTS,
    DIMENSIONS,
    FPS,
    FRAMES,
    HEIGHT,
    SCENES,
    WIDTH,
    Defects,
    Look,
    Shot,
    caption,
    render,
    start_x,
    truth,
)
from rewarders.toon_heads.training import degradation

TRAIN_CHARACTERS = ("female_adventurer", "male_person", "robot", "zombie")
TEST_CHARACTERS = ("female_person", "male_adventurer")
PRESENT = 0.45  # probability of each defect
DEGRADED = 0.2  # share of the others that are degraded
REDRAWN = 1 / 3  # share of clips that are redrawn, where a model is given
KNOWN = 0.5  # share of these that show a character as the model knows it; the others, figures for training
UNHEARD = 1 / 3  # share of the redrawn clips whose prompt asks for another action
WHOLE = 0.3  # share of the training figures whose parts are one character's
DRAWN = 0.4  # share of them in the files' colours, and of the parts of the others
KEPT = 0.5  # probability that a stand-in keeps a part, and a part's colours
COLOURS = 10_000
PART = 16  # clips degraded or redrawn together
LINE_EVERY = 16  # parts from one line of progress to the next
_STREAMS = {name: i for i, name in enumerate(("train", "test", *TEST_CHARACTERS), start=1)}

Degrade = Callable[[np.ndarray], np.ndarray]
"""uint8 ``[K, F, H, W, 3]`` -> the same, as a generator would draw it (e.g. a VAE's reconstruction)."""
Redraw = Callable[[np.ndarray, Sequence[str], np.random.Generator], np.ndarray]
"""uint8 clips ``[K, F, H, W, 3]`` and their captions -> the same, partly or wholly drawn anew by the model."""


@dataclass(frozen=True)
class Samples:
    """Clips with their prompts' parts and ratings."""

    clips: np.ndarray  # uint8 [K, FRAMES, HEIGHT, WIDTH, 3]
    firsts: np.ndarray  # uint8 [K, HEIGHT, WIDTH, 3], the clean first frames
    shots: tuple[Shot, ...]
    truths: np.ndarray  # float32 [K, 6], 0 .. 100, in the order of DIMENSIONS; NaN: unknown
    badness: np.ndarray  # float32 [K, 6, FRAMES - 1], 0 .. 1, of every frame after the first; NaN: unknown

    @property
    def captions(self) -> list[str]:
        """The prompts' texts."""
        return [caption(shot) for shot in self.shots]

    def truth_of(self, dimension: str) -> np.ndarray:
        """Ratings of one dimension, ``[K]``."""
        return self.truths[:, DIMENSIONS.index(dimension)]

    def rated(self, dimension: str) -> np.ndarray:
        """Indices of the clips whose rating in a dimension is known."""
        return np.flatnonzero(~np.isnan(self.truth_of(dimension)))

    def badness_of(self, dimension: str) -> np.ndarray:
        """Badness by frame of one dimension, ``[K, FRAMES - 1]``."""
        return self.badness[:, DIMENSIONS.index(dimension)]


def draw_samples(
    count: int,
    seed: int,
    split: str = "train",
    degrade: Degrade | None = None,
    redraw: Redraw | None = None,
    degraded: float = DEGRADED,
    log: Callable[[str], None] = lambda line: None,
    candidates: int = 1,
) -> Samples:
    """Render `count` clips of a split, redraw a share of them and degrade another.

    A split is ``train``, ``test``, or one of `TEST_CHARACTERS` for clips of that one alone.

    `candidates` neighbours show the same shot, each with defects of its own.

    `degrade` is what stands for the generator's losses (default: blur and coarse noise); H.264 follows in any case.
    """
    rng = np.random.default_rng([seed, _STREAMS[split]])
    again = rng.random(count) < (REDRAWN if redraw else 0.0)
    log(f"rendering {count} clips")
    samples = _rendered(again, rng, split, candidates)
    shots = list(samples.shots)
    if redraw:
        # Every part has a generator of its own: however much a model draws from it, the other clips stay the same.
        for part in _parts(np.flatnonzero(again), "redrawing", log):
            for place, shot in zip(part, _redraw(samples, part, redraw, rng.spawn(1)[0]), strict=True):
                shots[place] = shot
    for part in _parts(np.flatnonzero((rng.random(count) < degraded) & ~again), "degrading", log):
        clips = samples.clips[part]
        samples.clips[part] = _compressed(degrade(clips) if degrade else soften(clips, rng))
    return replace(samples, shots=tuple(shots))


def _rendered(clean: np.ndarray, rng: np.random.Generator, split: str, candidates: int) -> Samples:
    """One clip for each of `clean` (bool): those to redraw are clean, the others have defects of all kinds."""
    clips = np.empty((len(clean), FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    shots, truths, badness = [], [], []
    drawn = Shot("robot", "snow", "idle", 0)  # never used: the first clip draws its own
    for i, only_clean in enumerate(clean):
        if i % candidates == 0:
            drawn = _draw_shot(rng, split)
        shot, defects = drawn, _draw_defects(rng)
        stand_in = _stand_in(shot, rng, split)
        if only_clean:
            shot, defects = _to_redraw(shot, rng), Defects()
        clips[i], swapped = _render(shot, defects, stand_in, rng)
        shots.append(shot)
        truths.append([truth(defects)[name] for name in DIMENSIONS])
        badness.append(_badness(defects, swapped))
    ratings = np.array(truths, np.float32), np.array(badness, np.float32)
    return Samples(clips, clips[:, 0].copy(), tuple(shots), *ratings)


def _parts(chosen: np.ndarray, doing: str, log: Callable[[str], None]) -> Iterator[np.ndarray]:
    """The chosen indices in parts of `PART`, and now and then a line on how far that is."""
    for start in range(0, len(chosen), PART):
        if start % (LINE_EVERY * PART) == 0:
            log(f"{doing} {start}/{len(chosen)} clips")
        yield chosen[start : start + PART]


def _compressed(clips: np.ndarray) -> np.ndarray:
    """What H.264 leaves of clips."""
    return np.stack([decode_clip(encode_mp4(clip, FPS)) for clip in clips])


def _redraw(samples: Samples, part: np.ndarray, redraw: Redraw, rng: np.random.Generator) -> list[Shot]:
    """Redraw some clean clips in place and rate them by how they differ from what they were.

    Returns what their prompts ask for: of a share another action than the clip shows.
    """
    shots = [samples.shots[i] for i in part]
    clean = samples.clips[part]
    samples.clips[part] = _compressed(redraw(clean, [caption(shot) for shot in shots], rng))
    unheard = rng.random(len(part)) < UNHEARD
    bad = degradation.badness(samples.clips[part], clean, shots)
    bad["text"] = np.where(unheard, 1.0, 0.0)[:, None]
    bad["motion"][unheard] = np.nan
    for name, value in bad.items():
        samples.badness[part, DIMENSIONS.index(name)] = value
        samples.truths[part, DIMENSIONS.index(name)] = 100 * (1 - value.mean(1))
    return [_other_action(shot, rng) if other else shot for shot, other in zip(shots, unheard, strict=True)]


def _other_action(shot: Shot, rng: np.random.Generator) -> Shot:
    return replace(shot, action=str(rng.choice([action for action in ACTIONS if action != shot.action])))


def _draw_shot(rng: np.random.Generator, split: str) -> Shot:
    """Any action anywhere: the prompts' own splits are by combination and do not matter to heads."""
    names = TEST_CHARACTERS if split == "test" else (split,)
    character, look = _cast(rng) if split == "train" else (str(rng.choice(names)), AS_DRAWN)
    action = str(rng.choice(tuple(ACTIONS)))
    return Shot(character, str(rng.choice(tuple(SCENES))), action, start_x(action, rng), int(rng.integers(8)), look)


def _cast(rng: np.random.Generator) -> tuple[str, Look]:
    """A character for training and its look: mostly one that no file has."""
    parts = list(rng.choice(TRAIN_CHARACTERS, 3))
    if rng.random() < WHOLE:
        parts = parts[:1] * 3
    head, shirt, legs = np.where(rng.random(3) < DRAWN, 0, rng.integers(1, COLOURS, 3)).tolist()
    return "+".join(parts), AS_DRAWN if rng.random() < DRAWN else (head, shirt, legs)


def _draw_defects(rng: np.random.Generator) -> Defects:
    there = rng.random(len(DEFECTS)) < PRESENT
    severity = rng.random(len(DEFECTS))
    return Defects(**{name: float(severity[i]) for i, name in enumerate(DEFECTS) if there[i]})


def _to_redraw(shot: Shot, rng: np.random.Generator) -> Shot:
    """The shot from the first pose on, as in every prompt; `KNOWN` of them with a character of the files."""
    known = {"character": shot.character.split("+")[0], "look": AS_DRAWN} if rng.random() < KNOWN else {}
    return replace(shot, phase=0, **known)


def _stand_in(shot: Shot, rng: np.random.Generator, split: str) -> Shot:
    """The shot with the figure that an identity swap puts in place: another one in some part or in its colours."""
    if split != "train":
        return replace(shot, character=str(rng.choice([name for name in CHARACTERS if name != shot.character])))
    while True:
        character, look = _cast(rng)
        kept = rng.random((2, 3)) < KEPT
        donors = np.where(kept[0], shot.character.split("+"), character.split("+")).tolist()
        head, shirt, legs = np.where(kept[1], shot.look, look).tolist()
        other = replace(shot, character="+".join(donors), look=(head, shirt, legs))
        if other != shot:
            return other


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
