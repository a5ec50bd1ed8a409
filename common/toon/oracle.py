"""The oracle judge: measures what a toon clip shows against the renderer's ground truth. It is never trained on.

It finds the character's true sprites in every frame by template matching and gives three scores (each 0..100, higher is
better):

- identity: how well the best-matching true sprite explains the pixels it covers;
- motion: what fraction of the action's path the figure travels (a frozen clip scores about 0);
- smoothness: how steady its movement and its brightness are (a frozen clip scores high).

The masked squared error of sprite s at offset p is E(p) = sum a (I - c)^2 / sum a, with opacity a (0 or 1) and
colour c. It expands into sum a I^2 - 2 sum a c I + sum a c^2, computed for all offsets at once by FFT.

If the figure is sharp, a single view and offset fits best by far. If it is smeared, many fit about equally well, and
the best one is unstable. So the track is the posterior mean of a hidden Markov model: a view and offset has the weight
exp(-E / FIT_SCALE), and a step of the track that differs by d pixels from the action's own step has the weight
exp(-d / STEP_SCALE). Evidence for a shaking or frozen figure outweighs that prior; blur alone does not, and a small
change of the pixels changes the scores little.
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

MARGIN = 16  # pixels by which a sprite may extend beyond the frame
VISIBLE = 0.6  # fraction of the sprite that must be inside
PADDED = (HEIGHT + 2 * MARGIN + SPRITE_HEIGHT, WIDTH + 2 * MARGIN + SPRITE_WIDTH)
ROWS, COLUMNS = HEIGHT + 2 * MARGIN - SPRITE_HEIGHT + 1, WIDTH + 2 * MARGIN - SPRITE_WIDTH + 1
IDENTITY_SCALE = 0.012  # masked squared error (colours in 0..1) at which identity falls to 100/e
FIT_SCALE = 0.004  # difference in masked squared error that lowers the weight of a match by 1/e
STEP_SCALE = 2.0  # difference in pixels from the action's step that lowers the weight of a step by 1/e
TOP_MATCHES = 128  # best views and offsets per frame that enter the posterior
SHAKE_SCALE = 3.0  # pixels of mean second difference at which smoothness falls by 1/e
FLICKER_SCALE = 0.25  # relative spread of the figure's brightness at which smoothness falls by 1/e


@dataclass(frozen=True)
class OracleScores:
    """The oracle's scores of one clip, each 0..100."""

    identity: float
    motion: float
    smoothness: float


@dataclass(frozen=True)
class Templates:
    """A character's P views (poses and their mirror images): pixels, spectra, and sums over the part in the frame."""

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
    """Transform a spectrum back to one value per offset of the sprite, ``[..., ROWS, COLUMNS]``."""
    return torch.fft.irfft2(spectrum, s=PADDED)[..., :ROWS, :COLUMNS]


def match(clip: np.ndarray, shot: Shot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find a shot's character in each frame of a uint8 ``[FRAMES, HEIGHT, WIDTH, 3]`` clip.

    Only the part of the sprite inside the frame counts.

    Returns:
        The masked squared error of the best view ``[F]`` (colours in 0..1), the track of the figure's top-left corner
        ``[F, 2]`` in pixels, and the brightness of the pixels under the figure relative to the sprite's own ``[F]``.
    """
    templates = _templates(shot.character, shot.look)
    image = _pad(torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 255.0)
    least, best = _errors(templates, image).flatten(1).topk(TOP_MATCHES, 1, largest=False)
    view, offset = best // (ROWS * COLUMNS), best % (ROWS * COLUMNS)
    corner = torch.stack([offset % COLUMNS, offset // COLUMNS], 2)
    weight = _posterior(-least.double() / FIT_SCALE, corner.double(), torch.from_numpy(ACTIONS[shot.action].path()))
    gain = (weight * _brightness(templates, image, view, corner)).sum(1)
    track = (weight[..., None] * corner).sum(1) - MARGIN
    return least[:, 0].numpy(), track.numpy(), gain.numpy()


def _errors(templates: Templates, image: torch.Tensor) -> torch.Tensor:
    """E of every view at every offset in padded frames ``[F, 3, ., .]``: ``[F, P, ROWS, COLUMNS]``."""
    image_f = torch.fft.rfft2(image, s=PADDED)
    spectrum = torch.fft.rfft2(image.square().sum(1), s=PADDED)[:, None] * templates.alpha_f
    for channel in range(3):
        spectrum.addcmul_(image_f[:, None, channel], templates.minus_twice_f[:, channel])
    error = (_offsets(spectrum) + templates.own) / (3 * templates.total.clamp_min(1.0))
    return error.masked_fill(templates.total < VISIBLE * templates.total.amax((1, 2), keepdim=True), torch.inf)


def _posterior(fit: torch.Tensor, corner: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Posterior weights of the matches in each frame, by the forward-backward algorithm.

    Args:
        fit: log weight of each match ``[F, K]``.
        corner: its offset ``[F, K, 2]``, in pixels.
        path: the action's own displacement ``[F, 2]``.

    Returns:
        Weights ``[F, K]`` that sum to 1 in each frame.
    """
    steps = corner[1:, None] - corner[:-1, :, None] - path.diff(dim=0)[:, None, None]  # [F - 1, from, to, 2]
    link = -steps.abs().sum(-1) / STEP_SCALE
    forward, backward = [fit[0]], [torch.zeros_like(fit[0])]
    for t in range(len(link)):
        forward.append(fit[t + 1] + (forward[t][:, None] + link[t]).logsumexp(0))
        backward.append((link[-1 - t] + (fit[-1 - t] + backward[t])).logsumexp(1))
    return (torch.stack(forward) + torch.stack(backward[::-1])).softmax(1)


def _brightness(templates: Templates, image: torch.Tensor, view: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """Relative brightness sum a c I / sum a c^2 ``[F, K]``; 1 if the frame looks like the sprite.

    For padded frames ``[F, 3, ., .]`` under views ``[F, K]`` at corners ``[F, K, 2]``.
    """
    left, top = corner.unbind(2)
    rows = top[..., None, None] + torch.arange(SPRITE_HEIGHT)[:, None]
    columns = left[..., None, None] + torch.arange(SPRITE_WIDTH)
    frames = torch.arange(len(image))[:, None, None, None]
    under = image.movedim(1, -1)[frames, rows, columns]  # [F, K, SPRITE_HEIGHT, SPRITE_WIDTH, 3]
    cross = (under.movedim(-1, 2) * templates.weighted[view]).sum((2, 3, 4))
    return cross / templates.own[view, top, left].clamp_min(1e-3)


def oracle_applies(config: RunConfig) -> bool:
    """Whether the oracle can judge a run's clips: toon prompts, and clips of the toon world's size."""
    size = config.model
    return config.prompts == "toon" and (size.frames, size.height, size.width) == (FRAMES, HEIGHT, WIDTH)


def judge(clip: np.ndarray, shot: Shot) -> OracleScores:
    """Judge a clip (uint8 ``[FRAMES, HEIGHT, WIDTH, 3]``) that should show `shot`."""
    if clip.shape != (FRAMES, HEIGHT, WIDTH, 3):
        raise ValueError(f"clip is {list(clip.shape)}, the oracle judges {[FRAMES, HEIGHT, WIDTH, 3]}")
    error, track, gain = match(clip, shot)
    return OracleScores(
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
    """exp(-(excess second difference of the track)) * exp(-(relative spread of brightness)), times 100."""
    bend = np.abs(np.diff(track, 2, axis=0)).sum(1)
    natural = np.abs(np.diff(ACTIONS[shot.action].path(), 2, axis=0)).sum(1)
    shake = np.maximum(bend - natural - 1, 0).mean()  # rounding to pixels alone bends a straight track by up to 1
    flicker = gain[1:].std() / max(float(gain.mean()), 1e-6)
    return float(100 * np.exp(-shake / SHAKE_SCALE) * np.exp(-flicker / FLICKER_SCALE))
