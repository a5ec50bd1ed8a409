"""The oracle judge: what a clip shows, measured against the renderer's truth and never trained on.

It looks for the character's true sprites in every frame by template matching, and keeps three questions apart (each
0..100, higher is better):

- identity: how well the best-matching true sprite explains the pixels it covers;
- motion: how much of the action's path the figure travels (a frozen clip scores about 0);
- smoothness: how steadily it travels, and how steady its brightness is (a frozen clip scores high).

The masked squared error of sprite s at offset p is E(p) = sum a (I - c)^2 / sum a, with opacity a (0 or 1) and
colour c. It expands into sum a I^2 - 2 sum a c I + sum a c^2, computed for all offsets at once by FFT.

Where the figure is sharp, one view at one offset stands out. Where it is smeared many fit about as well, and the best
of them jumps with every pixel. So the track is the mean of a hidden Markov chain's posterior: a view and offset counts
exp(-E / FIT_SCALE), and a step of the track that differs from the action's own by d pixels counts exp(-d / STEP_SCALE).
Evidence for a shaking or frozen figure outweighs that prior; mere blur does not, and a small change of the pixels
changes a verdict little.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from common.config import RunConfig
from common.toon.world import (
    ACTIONS,
    FRAMES,
    HEIGHT,
    POSES,
    SPRITE_HEIGHT,
    SPRITE_WIDTH,
    WIDTH,
    Look,
    Shot,
    sprite,
)

MARGIN = 16  # pixels by which a sprite may leave the frame
VISIBLE = 0.6  # share of the sprite that must lie inside
PADDED = (HEIGHT + 2 * MARGIN + SPRITE_HEIGHT, WIDTH + 2 * MARGIN + SPRITE_WIDTH)
ROWS, COLUMNS = HEIGHT + 2 * MARGIN - SPRITE_HEIGHT + 1, WIDTH + 2 * MARGIN - SPRITE_WIDTH + 1
IDENTITY_SCALE = 0.012  # masked squared error (colours in 0..1) at which identity falls to 100/e
FIT_SCALE = 0.004  # masked squared error by which a place must be worse to count 1/e of another
STEP_SCALE = 2.0  # pixels by which a step must differ from the action's to count 1/e
FITTING = 128  # views and offsets that can count in a frame
SHAKE_SCALE = 3.0  # pixels of mean second difference at which smoothness falls by 1/e
FLICKER_SCALE = 0.25  # relative spread of the figure's brightness at which smoothness falls by 1/e


@dataclass(frozen=True)
class Verdict:
    """The oracle's three answers about one clip, each 0..100."""

    identity: float
    motion: float
    smoothness: float


@dataclass(frozen=True)
class Templates:
    """A character's P views (poses, also mirrored): pixels, spectra, and sums over what lies inside the frame."""

    weighted: torch.Tensor  # [P, 3, SPRITE_HEIGHT, SPRITE_WIDTH], a c
    alpha_f: torch.Tensor  # [P, .], spectrum of a
    minus_twice_f: torch.Tensor  # [P, 3, .], spectrum of -2 a c
    total: torch.Tensor  # [P, ROWS, COLUMNS], sum of a
    own: torch.Tensor  # [P, ROWS, COLUMNS], sum of a c^2


@cache
def _templates(character: str, look: Look) -> Templates:
    views = [sprite(character, pose, left, look) for pose in POSES for left in (False, True)]
    stack = torch.from_numpy(np.stack(views))
    alpha, colour = stack[..., 3], stack[..., :3].permute(0, 3, 1, 2) / 255.0
    alpha = (alpha > 0.95).float()  # edges blend with the background, so only opaque pixels identify
    weighted = alpha[:, None] * colour
    alpha_f, own_f, minus_twice_f = (
        torch.fft.rfft2(part, s=PADDED).conj().resolve_conj()
        for part in (alpha, (weighted * colour).sum(1), -2 * weighted)
    )
    inside = torch.fft.rfft2(_pad(torch.ones(HEIGHT, WIDTH)), s=PADDED)
    return Templates(weighted, alpha_f, minus_twice_f, _offsets(inside * alpha_f), _offsets(inside * own_f))


def _pad(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(image, [MARGIN] * 4)


def _offsets(spectrum: torch.Tensor) -> torch.Tensor:
    """Back from frequencies to one value per offset of the sprite, ``[..., ROWS, COLUMNS]``."""
    return torch.fft.irfft2(spectrum, s=PADDED)[..., :ROWS, :COLUMNS]


def match(clip: np.ndarray, shot: Shot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find a shot's character in each frame of a uint8 ``[FRAMES, HEIGHT, WIDTH, 3]`` clip.

    Returns the masked squared error of the best view ``[F]`` (colours in 0..1), the track of the figure's left-top
    corner ``[F, 2]`` in pixels, and the brightness of the pixels under it relative to the sprite's own ``[F]``. Only
    what lies inside the frame counts.
    """
    known = _templates(shot.character, shot.look)
    image = _pad(torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 255.0)
    least, best = _errors(known, image).flatten(1).topk(FITTING, 1, largest=False)
    view, place = best // (ROWS * COLUMNS), best % (ROWS * COLUMNS)
    corner = torch.stack([place % COLUMNS, place // COLUMNS], 2)
    share = _posterior(-least.double() / FIT_SCALE, corner.double(), torch.from_numpy(ACTIONS[shot.action].path()))
    gain = (share * _brightness(known, image, view, corner)).sum(1)
    track = (share[..., None] * corner).sum(1) - MARGIN
    return least[:, 0].numpy(), track.numpy(), gain.numpy()


def _errors(known: Templates, image: torch.Tensor) -> torch.Tensor:
    """E of every view at every offset in padded frames ``[F, 3, ., .]``: ``[F, P, ROWS, COLUMNS]``."""
    image_f = torch.fft.rfft2(image, s=PADDED)
    spectrum = torch.fft.rfft2(image.square().sum(1), s=PADDED)[:, None] * known.alpha_f
    for channel in range(3):
        spectrum.addcmul_(image_f[:, None, channel], known.minus_twice_f[:, channel])
    error = (_offsets(spectrum) + known.own) / (3 * known.total.clamp_min(1.0))
    return error.masked_fill(known.total < VISIBLE * known.total.amax((1, 2), keepdim=True), torch.inf)


def _posterior(fit: torch.Tensor, corner: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Shares ``[F, K]`` of the places ``[F, K, 2]`` in each frame, given how well all frames' places fit (log weights
    ``[F, K]``) and how the figure ought to move: the forward and the backward pass of the chain."""
    steps = corner[1:, None] - corner[:-1, :, None] - path.diff(dim=0)[:, None, None]  # [F - 1, from, to, 2]
    link = -steps.abs().sum(-1) / STEP_SCALE
    forward, backward = [fit[0]], [torch.zeros_like(fit[0])]
    for t in range(len(link)):
        forward.append(fit[t + 1] + (forward[t][:, None] + link[t]).logsumexp(0))
        backward.append((link[-1 - t] + (fit[-1 - t] + backward[t])).logsumexp(1))
    return (torch.stack(forward) + torch.stack(backward[::-1])).softmax(1)


def _brightness(known: Templates, image: torch.Tensor, view: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """sum a c I / sum a c^2 of padded frames ``[F, 3, ., .]`` under views ``[F, K]`` at corners ``[F, K, 2]``: 1 where
    the frame looks like the sprite."""
    left, top = corner.unbind(2)
    rows = top[..., None, None] + torch.arange(SPRITE_HEIGHT)[:, None]
    columns = left[..., None, None] + torch.arange(SPRITE_WIDTH)
    frames = torch.arange(len(image))[:, None, None, None]
    under = image.movedim(1, -1)[frames, rows, columns]  # [F, K, SPRITE_HEIGHT, SPRITE_WIDTH, 3]
    cross = (under.movedim(-1, 2) * known.weighted[view]).sum((2, 3, 4))
    return cross / known.own[view, top, left].clamp_min(1e-3)


def oracle_applies(config: RunConfig) -> bool:
    """Whether the oracle can judge a run's clips: toon prompts, and clips of the toon world's size."""
    size = config.model
    return config.prompts == "toon" and (size.frames, size.height, size.width) == (FRAMES, HEIGHT, WIDTH)


def judge(clip: np.ndarray, shot: Shot) -> Verdict:
    """Judge a clip (uint8 ``[FRAMES, HEIGHT, WIDTH, 3]``) that was to show `shot`."""
    if clip.shape != (FRAMES, HEIGHT, WIDTH, 3):
        raise ValueError(f"clip is {list(clip.shape)}, the oracle judges {[FRAMES, HEIGHT, WIDTH, 3]}")
    error, track, gain = match(clip, shot)
    return Verdict(
        identity=float(100 * np.exp(-error[1:].clip(0) / IDENTITY_SCALE).mean()),
        motion=_motion(track, shot),
        smoothness=_smoothness(track, gain, shot),
    )


def _motion(track: np.ndarray, shot: Shot) -> float:
    """Projection of the track on the action's path, <track, path> / <path, path>, clamped to [0, 1], times 100."""
    path = ACTIONS[shot.action].path()
    moved = track - track[0]
    return float(100 * np.clip((moved * path).sum() / (path * path).sum(), 0, 1))


def _smoothness(track: np.ndarray, gain: np.ndarray, shot: Shot) -> float:
    """exp(-(excess second difference of the track)) * exp(-(spread of brightness)), times 100."""
    bend = np.abs(np.diff(track, 2, axis=0)).sum(1)
    natural = np.abs(np.diff(ACTIONS[shot.action].path(), 2, axis=0)).sum(1)
    shake = np.maximum(bend - natural - 1, 0).mean()  # whole-pixel offsets alone bend a straight track by up to 1
    flicker = gain[1:].std() / max(float(gain.mean()), 1e-6)
    return float(100 * np.exp(-shake / SHAKE_SCALE) * np.exp(-flicker / FLICKER_SCALE))
